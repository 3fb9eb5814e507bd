"""Euler steps that go too far, and noise that leads back (`sample_euler_ancestral` of k-diffusion).

Offers: sample

From σ = t here to σ = s there, with z standard normal:

    up = η √(s² (t² − s²) / t²),   down = √(s² − up²),   x_s = x_t + (down − t) (x_t − D) / t + up z

η = 0 is `euler`; with η = 1 a step has the mean and variance of DDPM's (`small`). In the coordinates x = x_0 + σ n it is DDIM's
step with the same η: what is its own are the defaults, full noise on the levels of `euler`.

Errors: a denoiser whose estimate is not a mean; a number of steps below 1, or above the levels of a model with a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import NoiseSchedule
from gencli.samplers.ddim import Ddim


class EulerAncestral(DiffusionSampler):
    """First order, with fresh noise in every step but the last."""

    accepts: ClassVar[tuple[str, ...]] = ("mean",)
    own: ClassVar[NoiseSchedule] = "model"

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        eta: float = opt(1.0, "noise put back: 0 = none, 1 = as much as DDPM", low=0, high=1)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._same = Ddim.make({"eta": config.eta})

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        return self._same.step(denoise, x, here, there, memory, rng)
