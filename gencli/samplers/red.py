"""The Little Engine that Could: Regularization by Denoising (RED) (Romano, Elad & Milanfar, 2016). arXiv:1611.02862

Offers: sample

    E(x) = |y − A x|² / 2σ_y² + λ/2 xᵀ(x − f(x)),   ∇E = Aᵀ(A x − y) / σ_y² + λ (x − f(x))

for a denoiser f = D(·; σ) of symmetric Jacobian that is homogeneous. `fixed-point` solves for x with f(x) held, `descent` steps
along −∇E by 1 / (s²/σ_y² + λ) for the greatest singular value s, `admm` alternates, with one fixed-point step for the prior.
All reach the same image. λ is `weight` / σ². Deterministic, but for the noise of the measurement; with `noise` 0, σ_y is 0.001.

Ours: the denoiser is the model's own at the constant level `level`.

Raises GencliError for an operator that is not linear, without a measurement, and for an estimate that is not a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.operators._base import LinearOperator
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._restoring import SURE, Measured, Restorer
from gencli.samplers.pnp import falling


class Red(Restorer):
    """A denoiser as a quadratic form."""

    draws: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config, Measured):
        steps: int = opt(50, "network evaluations")
        level: float = opt(0.2, "σ that the denoiser is asked at", low=1e-4)
        weight: float = opt(1.0, "of the prior", low=0)
        method: Literal["fixed-point", "descent", "admm"] = opt("fixed-point", "how the minimum is found")

    def levels(self, model: Any) -> Tensor:
        return falling(self.config.level, self.config.level, self.config.steps)

    def begin(self, model: Any, noise: Tensor, level: Tensor, memory: Memory) -> Tensor:
        operator: LinearOperator = memory["operator"]
        memory["u"] = torch.zeros_like(noise)
        start = operator.pseudo_inverse(memory["y"].to(noise))
        memory["v"] = start
        return start

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        operator, y = memory["operator"], memory["y"].to(x)
        variance = max(self.config.noise, SURE) ** 2
        pull = self.config.weight / float(here) ** 2
        if self.config.method == "admm":
            return self._alternated(denoise, operator, y, here, variance, pull, memory)
        memory["x0"] = clean = denoise(x, here)
        if self.config.method == "fixed-point":
            return operator.nearest(y, clean, variance * pull)
        slope = operator.adjoint(operator.measure(x) - y) / variance + pull * (x - clean)
        return x - slope * (1 / (float(operator.singular(x).max()) ** 2 / variance + pull))

    def _alternated(
        self,
        denoise: Denoise,
        operator: LinearOperator,
        y: Tensor,
        here: Tensor,
        variance: float,
        pull: float,
        memory: Memory,
    ) -> Tensor:
        """One round: x by the measurement, v by one fixed-point step of the prior, u by what is between them; β = λ."""
        u, v = memory["u"], memory["v"]
        x = operator.nearest(y, v - u, variance * pull)
        memory["x0"] = clean = denoise(v, here)
        memory["v"] = (clean + x + u) / 2
        memory["u"] = u + x - memory["v"]
        return x
