"""Plug-and-Play Priors for Model Based Reconstruction (Venkatakrishnan, Bouman & Wohlberg, 2013).

Offers: sample

The alternating direction method of multipliers for |y − A x|² / 2σ_y² − log p(x), the proximal step of the prior replaced by
a denoiser D:

    x ← argmin |y − A x|² / σ_y² + |x − v + u|² / σ²,   v ← D(x + u; σ),   u ← u + x − v

With D the proximal step of a quadratic it reaches the closed form of the most probable image. σ falls evenly in its logarithm
from `high` to `low`, which reaches a good image in few steps (Zhang et al., arXiv:2008.13751); equal ends are the paper's
constant σ. Deterministic, but for the noise of the measurement. With `noise` 0, σ_y is 0.001.

Raises GencliError for an operator that is not linear, without a measurement, and for an estimate that is not a mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.guidance._base import Denoise
from gencli.operators._base import LinearOperator
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._restoring import SURE, Measured, Restorer


def falling(high: float, low: float, steps: int) -> Tensor:
    """`steps` levels from `high` to `low`, evenly in their logarithm, and 0, as the end of a list of levels."""
    made = torch.linspace(math.log(high), math.log(low), steps, dtype=torch.float64).exp()
    return torch.cat([made, made.new_zeros(1)])


class Pnp(Restorer):
    """A measurement and a denoiser in turn."""

    draws: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config, Measured):
        steps: int = opt(30, "network evaluations")
        high: float = opt(1.0, "σ of the first step", low=1e-4)
        low: float = opt(0.05, "σ of the last step", low=1e-4)

    def levels(self, model: Any) -> Tensor:
        c = self.config
        if c.low > c.high:
            raise GencliError(f"{self.public_name()}: low {c.low:g} is above high {c.high:g}", "exchange them")
        return falling(c.high, c.low, c.steps)

    def begin(self, model: Any, noise: Tensor, level: Tensor, memory: Memory) -> Tensor:
        operator: LinearOperator = memory["operator"]
        memory["u"] = torch.zeros_like(noise)
        return operator.pseudo_inverse(memory["y"].to(noise))

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        operator, y, u = memory["operator"], memory["y"].to(x), memory["u"]
        weight = float((max(self.config.noise, SURE) / here) ** 2)
        near = operator.nearest(y, x - u, weight)
        v = denoise(near + u, here)
        memory["x0"], memory["u"] = v, u + near - v
        return v
