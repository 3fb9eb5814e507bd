"""Pseudoinverse-Guided Diffusion Models for Inverse Problems: ΠGDM (Song, Vahdat, Mardani & Kautz, 2023).

Offers: sample

Ancestral sampling with the denoiser of the posterior, E[x_0 | x_t, y]: with D the model's and J its Jacobian at x_t,

    D_y = D + σ² Jᵀ Aᵀ (σ_y² I + r² A Aᵀ)⁻¹ (y − A D),   r² = s² σ² / (s² + σ²)

That is Bayes' rule where x_0 given x_t is Gaussian with variance r²: exact for Gaussian data of deviation s in every direction,
`deviation`; the paper's is 1. The gradient takes a pass backward at each step.

Raises GencliError for an operator that is not linear, without a measurement, and for an estimate that is not a mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.operators._base import LinearOperator
from gencli.samplers._diffusion import Memory
from gencli.samplers._restoring import Measured, Restorer, led
from gencli.samplers.ancestral import Ancestral


class Posterior(Restorer, Ancestral):
    """Ancestral sampling of what is left possible."""

    @dataclass(frozen=True)
    class Config(Ancestral.Config, Measured):
        steps: int = opt(100, "network evaluations; 0 = every level the model was trained at")
        deviation: float = opt(1.0, "s: of the data in any direction, before anything is known", low=1e-3)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        operator: LinearOperator = memory["operator"]
        y = memory["y"].to(x)

        def aim(x0: Tensor) -> Tensor:
            return (x0 * self._explained(operator, y, x0.detach(), here)).sum()

        known, pull = led(denoise, x, here, memory, aim)
        return super().step(lambda *_: known + here**2 * pull, x, here, there, memory, rng)

    def _explained(self, operator: LinearOperator, y: Tensor, x0: Tensor, sigma: Tensor) -> Tensor:
        """Aᵀ (σ_y² I + r² A Aᵀ)⁻¹ (y − A D)."""
        s, least = operator.singular(x0), torch.finfo(x0.dtype).tiny
        room = (self.config.deviation * sigma) ** 2 / (self.config.deviation**2 + sigma**2)
        left = operator.lower(y - operator.measure(x0))
        return operator.back(s * left / (self.config.noise**2 + room * s**2).clamp(min=least))
