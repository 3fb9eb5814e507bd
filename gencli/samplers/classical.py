"""Restoration by classical priors of images, without a model: smoothness, few wavelets, or little variation.

Offers: sample

The most probable image of a measurement y = A x + σ_y n under a prior exp(−μ ρ(x)) that knows no data,

    argmin ½ |A x − y|² + λ ρ(x),   λ = μ σ_y²

tikhonov   ρ = ½ |L x|², L the differences of neighbours (Tikhonov, 1963): x = (AᵀA + λ LᵀL)⁻¹ Aᵀy, by conjugate gradients
wavelet    ρ = |W x|₁ of the details of a Haar transform (Daubechies, Defrise & De Mol, 2003; arXiv:math/0307152)
tv         ρ = Σ |L x|, total variation (Rudin, Osher & Fatemi, 1992)

The last two by the primal-dual method of Chambolle & Pock (2011), with ρ = Σ |K x| and τ = 1 / |K|,

    q ← q + τ K (2 x − x'), cut to a length of 1,   x' ← x,   x ← argmin |A x − y|² / 2λ + |x − (x' − τ Kᵀ q)|² / 2τ

Shown, and given, is the x of the least objective so far. They are the baselines of samplers with a learned prior: of the run
they take the images' shape and range alone, and its network is never asked. Deterministic, but for the noise of the
measurement. With `noise` 0, σ_y is 0.001.

Ours: one `weight` μ for all three, which suits data in −1 … 1; no prior of wavelets for the means of the coarsest level.

Raises GencliError for an operator that is not linear, without a measurement, and for wavelets of sides that do not halve.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Model, Rng, Spec, as_rows
from gencli.guidance._base import Denoise
from gencli.operators._base import LinearOperator
from gencli.operators._priors import PRIORS, shrunk
from gencli.samplers._diffusion import Memory
from gencli.samplers._restoring import SURE, Measured, Restorer


class Classical(Restorer):
    """A measurement and what images are like."""

    accepts: ClassVar[tuple[str, ...]] = ("mean", "transport", "endpoint")
    draws: ClassVar[bool] = False
    unguided: ClassVar[str] = "asks no model"

    @dataclass(frozen=True)
    class Config(Measured):
        prior: Literal["tikhonov", "wavelet", "tv"] = opt("tv", "what images are like: smooth, of few pieces, flat")
        weight: float = opt(2.0, "μ of the prior", low=1e-6)
        steps: int = opt(300, "iterations; the network is not asked", low=1)

    @property
    def clips(self) -> bool:
        return False

    @property
    def strength(self) -> float:
        """λ."""
        return float(self.config.weight * max(self.config.noise, SURE) ** 2)

    def levels(self, model: Any) -> Tensor:
        """Of noise, which there is none."""
        return torch.zeros(self.config.steps + 1, dtype=torch.float64)

    def evaluations(self, model: Model, spec: Spec) -> int:
        return 0

    def recalled(self, model: Any, spec: Spec, n: int, cond: Batch) -> Memory:
        memory = super().recalled(model, spec, n, cond)
        return {**memory, "prior": PRIORS[self.config.prior](memory["operator"].shape)}

    def objective(self, x: Tensor, memory: Memory) -> Tensor:
        """What is minimised, `(N,)`."""
        operator, prior = memory["operator"], memory["prior"]
        left = operator.measure(x) - memory["y"].to(x)
        return left.square().flatten(1).sum(1) / 2 + self.strength * prior.value(x)

    def begin(self, model: Any, noise: Tensor, level: Tensor, memory: Memory) -> Tensor:
        operator: LinearOperator = memory["operator"]
        y = memory["y"].to(noise)
        x = operator.nearest(y, torch.zeros_like(noise), self.strength)
        if self.config.prior == "tikhonov":
            memory["way"] = memory["left"] = operator.adjoint(y) - self._normal(x, memory)
        else:
            memory["now"], memory["dual"] = x, torch.zeros_like(memory["prior"].map(x))
            memory["ahead"], memory["least"] = x, self.objective(x, memory)
        return x

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        made = self._conjugate(x, memory) if self.config.prior == "tikhonov" else self._least(x, memory)
        memory["x0"] = made
        return made

    def _normal(self, x: Tensor, memory: Memory) -> Tensor:
        """(AᵀA + λ LᵀL) x."""
        operator, prior = memory["operator"], memory["prior"]
        seen: Tensor = operator.adjoint(operator.measure(x))
        return seen + self.strength * prior.transpose(prior.map(x))

    def _conjugate(self, x: Tensor, memory: Memory) -> Tensor:
        """A step of conjugate gradients, each image's its own."""
        left, way = memory["left"], memory["way"]
        turned, tiny = self._normal(way, memory), torch.finfo(x.dtype).tiny
        size = _inner(left, left)
        far = size / _inner(way, turned).clamp(min=tiny)
        memory["left"] = after = left - far * turned
        memory["way"] = after + _inner(after, after) / size.clamp(min=tiny) * way
        return x + far * way

    def _least(self, x: Tensor, memory: Memory) -> Tensor:
        """A primal-dual step; x, or where it is better, what the step led to."""
        operator, prior, pace = memory["operator"], memory["prior"], memory["prior"].bound ** -0.5
        raised = memory["dual"] + pace * prior.map(memory["ahead"])
        memory["dual"] = raised - shrunk(raised, 1.0)
        before = memory["now"]
        y = memory["y"].to(x)
        now = operator.nearest(y, before - pace * prior.transpose(memory["dual"]), self.strength / pace)
        memory["now"], memory["ahead"] = now, 2 * now - before
        value = self.objective(now, memory)
        better = value < memory["least"]
        memory["least"] = torch.where(better, value, memory["least"])
        return torch.where(as_rows(better, x), now, x)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Of each image, `(N, 1, 1, 1)`."""
    return (a * b).sum((1, 2, 3), keepdim=True)
