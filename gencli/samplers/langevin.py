"""Generative Modeling by Estimating Gradients: Langevin dynamics at one level (Song & Ermon, 2019). arXiv:1907.05600

Offers: sample

    x ← x + (ε/2) ∇log p_σ(x) + √ε z,      ∇log p_σ(x) = (D(x, σ) − x) / σ²,      ε = step_size σ²

Without a Metropolis test the variance is off: for N(0, v) it settles at v / (1 − ε / 4v), and there is none for ε ≥ 4v. Every
direction of noisy data has a variance of σ² at least, so that a step relative to σ² is stable below 4 for any model. Modes
further apart than the noise are not mixed: each sample stays where its start put it, and at the least level the start is far
from all data, which is why there is `annealed-langevin` (also Bishop & Bishop, Deep Learning, 2024, 14.3).

The start is the model's at that level; the last step is D(x, σ), without noise (`denoise`).

Ours: by default σ = 0.5 or the model's level nearest to it, where digits still mix and D is still sharp.

Errors: a σ outside the model's levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import ends

USUAL = 0.5


class Langevin(DiffusionSampler):
    """A random walk uphill, at one level."""

    accepts: ClassVar[tuple[str, ...]] = ("mean",)
    chain: ClassVar[bool] = True

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        steps: int = opt(200, "steps of Langevin dynamics", low=1)
        sigma: float = opt(0.0, "level of noise; 0 = 0.5, or the model's nearest to it", low=0)
        step_size: float = opt(0.5, "ε over σ²; stable below 4", low=1e-6, high=3.99)
        denoise: bool = opt(True, "end with the estimate of x0")

    def levels(self, model: Any) -> Tensor:
        low, high = ends(model)
        sigma = self.config.sigma or min(max(USUAL, low), high)
        if not low <= sigma <= high:
            raise GencliError(
                f"langevin: sigma is {sigma:g}, the model's levels are {low:g} to {high:g}", "use --sigma between them"
            )
        last = [0.0] if self.config.denoise else []
        return torch.tensor([sigma] * (self.config.steps + 1) + last, dtype=torch.float64)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        return langevin_step(denoise, x, here, there, memory, rng, self.config.step_size)


def langevin_step(
    denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng, step_size: float
) -> Tensor:
    """One step at `here` with ε = step_size `here`²; to 0, the estimate itself."""
    memory["x0"] = x0 = denoise(x, here)
    if there == 0:
        return x0
    return x + step_size / 2 * (x0 - x) + step_size**0.5 * here * rng.normal(x.shape).to(x)
