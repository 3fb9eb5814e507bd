"""Score-Based Generative Modeling through SDEs: the probability-flow ODE (Song et al., 2020). arXiv:2011.13456

Offers: sample, encode

The ODE whose x has the SDE's density at every level; in the coordinates x = x_0 + σ n, with u = log σ,

    dx/du = x − D(x, e^u)

from noise to data (and back) by an adaptive solver, then one denoising step from the least σ to 0. A first-order step in σ
is DDIM's. Each image has steps of its own, with the error of that image alone, so that it does not depend on its
batch-mates; `steps` is only the number of states shown on the way.

Ours: σ as the time of every process, since the flow is the same for VP, VE and sub-VP; from data at σ = 0 the encoder goes
to the least level by x + (x − D), which the last step of decoding undoes to second order. Between levels of a model with a
table its network sees the nearest, so that its flow has jumps: tolerances below 1e-4 cost much there and gain little.

Evaluations are known only afterwards: `info["evaluations"]` `(N,)` of the last frame; before, they are estimated.

Errors: steps below 1; a tolerance that no step can meet.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Model, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance._base import Denoise
from gencli.samplers._base import Frame
from gencli.samplers._butcher import METHODS, SolverName
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import NoiseSchedule, ends
from gencli.samplers._ode import LONGEST, integrate, velocity, within

PACE = 0.27  # steps for a unit of log σ at a tolerance of 1, measured on digits and on two Gaussians


class PfOde(DiffusionSampler):
    """As precise as asked, deterministic, invertible."""

    own: ClassVar[NoiseSchedule] = "logsnr"

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        steps: int = opt(20, "states shown on the way; the solver chooses its own steps")
        solver: SolverName = opt("dopri5", "adaptive Runge-Kutta method")
        rtol: float = opt(1e-4, "error allowed in a step, relative to x", low=1e-12, high=0.1)
        atol: float = opt(1e-4, "error allowed in a step where x is 0", low=1e-12, high=0.1)

    def levels(self, model: Any) -> Tensor:
        if self.config.noise_schedule != "own":
            return super().levels(model)
        low, high = ends(model)
        if self.config.steps < 1:
            raise GencliError(f"pf-ode: steps is {self.config.steps}", "use --steps 1 or more")
        inner = torch.logspace(math.log(high), math.log(low), self.config.steps, base=math.e, dtype=torch.float64)
        inner[0] = high
        if self.config.steps > 1:
            inner[-1] = low
        return torch.cat([inner, inner.new_zeros(1)])

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        *_, (x, memory["x0"], _, _) = self._way(denoise, x, torch.stack([here, there]))
        return x

    def run(
        self,
        denoise: Denoise,
        x: Tensor,
        levels: Tensor,
        rng: Rng,
        after: Callable[[Tensor, Tensor, Rng], Tensor] | None = None,
        rise: str = "renoise",
        memory: Memory | None = None,
    ) -> Iterator[Frame]:
        """All levels in one go; from level to level where they turn, or where x is edited on the way."""
        falls, climbs = bool((levels.diff() < 0).all()), bool((levels.diff() > 0).all())
        if after is not None or not (falls or (climbs and rise == "step")):
            yield from super().run(denoise, x, levels, rng, after, rise, memory)
            return
        total = len(levels) - 1
        for i, (noisy, x0, there, spent) in enumerate(self._way(denoise, x, levels)):
            info = {"sigma": there, "noisy": noisy / (1 + there**2).sqrt(), "evaluations": spent}
            yield Frame(noisy if i == total - 1 else x0, i, total, info)

    def _way(self, denoise: Denoise, x: Tensor, levels: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """x, the estimate of x0, σ, and each row's evaluations so far, after every level but the first."""
        spent = torch.zeros(len(x), dtype=torch.long, device=x.device)
        inner = levels[levels > 0]
        x0 = None
        if levels[0] == 0:
            x0, spent = denoise(x, inner[0]), spent + 1
            x = 2 * x - x0
            yield x, x0, inner[0], spent
        if len(inner) > 1:
            flow, before = velocity(denoise, inner.min(), inner.max()), spent
            allowed = within(self.config.rtol, self.config.atol)
            points = integrate(flow, x, inner.log(), allowed, self.config.solver, LONGEST)
            for point, there in zip(points, inner[1:], strict=True):
                x, x0, spent = point.y, point.y - point.slope, before + point.evaluations
                yield x, x0, there, spent
        if levels[-1] == 0:
            if x0 is None:
                x0, spent = denoise(x, inner[0]), spent + 1
            yield x0, x0, levels[-1], spent

    def evaluations(self, model: Model, spec: Spec) -> int:
        """An estimate; `info["evaluations"]` of the last frame has each image's number."""
        inner = self.levels(model)[:-1]
        if len(inner) == 1:
            return 1
        method, tolerance = METHODS[self.config.solver], max(self.config.rtol, self.config.atol)
        pace = max(PACE * tolerance ** (-1 / method.order), 1 / LONGEST)
        attempts = math.ceil(pace * math.log(inner[0] / inner[-1]))
        return 2 + len(method.nodes) * attempts
