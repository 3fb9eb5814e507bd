"""Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022). arXiv:2206.00364

Offers: sample

The paper's algorithm 2 for dx/dσ = d(x, σ) = (x − D(x; σ)) / σ, with N steps:

    γ = min(S_churn / N, √2 − 1) where S_min ≤ σ_i ≤ S_max, else 0
    σ̂ = σ_i (1 + γ),   x̂ = x + √(σ̂² − σ_i²) S_noise z
    x_Euler = x̂ + (σ_{i+1} − σ̂) d(x̂, σ̂)
    x = x̂ + (σ_{i+1} − σ̂) (d(x̂, σ̂) + d(x_Euler, σ_{i+1})) / 2,   and x_Euler itself where σ_{i+1} = 0

S_churn = 0 is algorithm 1, deterministic and of second order. N steps take 2 N − 1 evaluations: 35 for the default of 18. N is
the setting `steps`, also where only a part of the levels is walked. The correction divides by σ_{i+1}: levels that fall by a
large factor in one step (`model`, where a schedule ends without signal) overshoot.

Ours: S_max = 0 stands for ∞. The authors' ImageNet-64 settings are S_churn 40, S_min 0.05, S_max 50, S_noise 1.003, 256 steps.

Errors: churn with a denoiser whose estimate is not a mean; a number of steps below 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory

MOST_CHURN = math.sqrt(2) - 1  # never more new noise than there is already


class Heun(DiffusionSampler):
    """Second order, two evaluations a step; churn adds noise before a step."""

    calls = 2

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        steps: int = opt(18, "steps from noise to data; each but the last takes two evaluations")
        s_churn: float = opt(0.0, "noise added over all steps; 0 = deterministic", low=0)
        s_min: float = opt(0.0, "least σ at which noise is added", low=0)
        s_max: float = opt(0.0, "greatest σ at which noise is added; 0 = any", low=0)
        s_noise: float = opt(1.0, "standard deviation of the noise that is added", low=0)

    def check(self, model: Any) -> None:
        super().check(model)
        if self.config.s_churn > 0 and model.meaning != "mean":
            raise GencliError(
                f"heun with s-churn {self.config.s_churn} adds noise, which is wrong for an estimate of kind '{model.meaning}'",
                "use --s-churn 0",
            )

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        x, here = self._churned(x, here, rng)
        memory["x0"] = x0 = denoise(x, here)
        if there == 0:
            return x0
        slope = (x - x0) / here
        ahead = x + (there - here) * slope
        memory["x0"] = x0 = denoise(ahead, there)
        return x + (there - here) * 0.5 * (slope + (ahead - x0) / there)

    def _churned(self, x: Tensor, here: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """x with noise added, and the level that it is at then."""
        config = self.config
        if config.s_churn == 0 or not config.s_min <= here <= (config.s_max or math.inf):
            return x, here
        raised = here * (1 + min(config.s_churn / config.steps, MOST_CHURN))
        return x + (raised**2 - here**2).sqrt() * config.s_noise * rng.normal(x.shape).to(x), raised
