"""DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022). arXiv:2211.01095

Offers: sample

SDE-DPM-Solver++(2M), the two-step method for the reverse SDE dx = (1 + η) (x − D) / σ dσ + √(2 η σ) dw, solved exactly for
an estimate D′ that stays as it is during a step from t to s:

    x_s = D′ + (s / t)^(1+η) (x_t − D′) + s √(1 − (s / t)^(2η)) z,   z standard normal

with D′ as in `dpmpp-2m`, which is η = 0; the paper has η = 1. No noise is added in the last step, to σ = 0.

Ours: η, as in k-diffusion; levels evenly in σ^(1/7) by default.

Errors: a denoiser whose estimate is not a mean; a number of steps below 1, or above the levels of a model with a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._multistep import extrapolated, remembered, straight


class Dpmpp2mSde(DiffusionSampler):
    """The estimate of two steps, with fresh noise in every step but the last."""

    accepts: ClassVar[tuple[str, ...]] = ("mean",)

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        eta: float = opt(1.0, "strength of the noise: 0 = none (dpmpp-2m), 1 = the paper's SDE", low=0)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        memory["x0"] = x0 = denoise(x, here)
        ahead = extrapolated(remembered(memory, here, there, x0, 2), there)
        fall = (there / here) ** self.config.eta
        x = straight(x, ahead, here, there * fall)
        return x if there == 0 else x + there * (1 - fall**2).sqrt() * rng.normal(x.shape).to(x)
