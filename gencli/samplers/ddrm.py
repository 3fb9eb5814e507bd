"""Denoising Diffusion Restoration Models (Kawar et al., 2022). arXiv:2201.11793

Offers: sample

With A = U Σ Vᵀ, all in coefficients c = Vᵀ x of the operator, ȳ = Σ⁺ Uᵀ y and the noise ν = σ_y / s of each coefficient of
singular value s; D the coefficients of the estimate at σ = t, z standard normal:

    start       ȳ + √(t² − ν²) z  where t ≥ ν,   else the model's own
    s = 0       D + √(1 − η²) s' (c − D) / t + η s' z
    s' < ν      D + √(1 − η²) s' (ȳ − D) / ν + η s' z
    s' ≥ ν      (1 − η_b) D + η_b ȳ + √(s'² − η_b² ν²) z

for the next level s'. So every coefficient keeps the law N(x_0, σ²) of the model's own forward process. Defaults are the
paper's: η = 0.85, η_b = 1, 20 steps. Without an operator it is DDIM whose deviation at each step is η s'.

Raises GencliError for an operator that is not linear, without a measurement, and for an estimate that is not a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.operators._base import LinearOperator
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import Spacing, spaced
from gencli.samplers._restoring import Measured, Restorer


class Ddrm(Restorer):
    """Each coefficient by what is known of it."""

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config, Measured):
        steps: int = opt(20, "network evaluations")
        eta: float = opt(0.85, "noise put back where nothing is measured, or little", low=0, high=1)
        eta_b: float = opt(1.0, "weight of the measurement where it is surer than the level", low=0, high=1)
        spacing: Spacing = opt("trailing", "which of the model's levels are visited by the sampler's own schedule")

    def levels(self, model: Any) -> Tensor:
        if self.config.noise_schedule != "own":
            return super().levels(model)
        return spaced(model, self.config.steps, self.config.spacing, self.public_name())

    def _known(self, memory: Memory, like: Tensor) -> tuple[LinearOperator, Tensor, Tensor]:
        """The operator, ȳ `(N, D)`, and ν `(D,)`, infinite where nothing is measured."""
        operator: LinearOperator = memory["operator"]
        inverse = operator.inverse(like)
        noise = torch.where(inverse > 0, self.config.noise * inverse, torch.inf)
        return operator, inverse * operator.lower(memory["y"].to(like)), noise

    def begin(self, model: Any, noise: Tensor, level: Tensor, memory: Memory) -> Tensor:
        operator, mean, unsure = self._known(memory, noise)
        sure = unsure <= level.to(noise)
        held = mean + (level.to(noise) ** 2 - torch.where(sure, unsure, 0.0) ** 2).sqrt() * operator.rotate(noise)
        return operator.back(torch.where(sure, held, operator.rotate(model.start(noise, level))))

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        operator, mean, unsure = self._known(memory, x)
        memory["x0"] = x0 = denoise(x, here)
        eta, eta_b = self.config.eta, self.config.eta_b
        c, d = operator.rotate(x), operator.rotate(x0)
        z = operator.rotate(rng.normal(x.shape).to(x))
        measured = unsure < torch.inf
        finite = torch.where(measured, unsure, 1.0).clamp(min=torch.finfo(x.dtype).tiny)
        kept = (1 - eta**2) ** 0.5 * there
        free = d + kept * (c - d) / here + eta * there * z
        loose = d + kept * (mean - d) / finite + eta * there * z
        held = (1 - eta_b) * d + eta_b * mean + (there**2 - (eta_b * finite) ** 2).clamp(min=0).sqrt() * z
        return operator.back(torch.where(~measured, free, torch.where(there < unsure, loose, held)))
