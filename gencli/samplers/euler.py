"""Euler's method on the probability-flow ODE.

Offers: sample, encode

    dx/dσ = (x − D(x; σ)) / σ,   x_s = x_t + (σ_s − σ_t) (x_t − D) / σ_t

One evaluation a step, first order; levels may ascend. In the coordinates x = x_0 + σ n this is DDIM's step with η = 0. What
is its own is the default schedule, `model`: levels evenly in the time of the model. For flow matching that makes it Euler's
method of equal steps in τ for dx_τ/dτ = v, since both walk the same straight line.

Errors: a number of steps below 1, or above the levels of a model with a table.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import NoiseSchedule
from gencli.samplers.ddim import Ddim


class Euler(DiffusionSampler):
    """First order, deterministic."""

    own: ClassVar[NoiseSchedule] = "model"

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self._same = Ddim.make({"eta": 0.0})

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        return self._same.step(denoise, x, here, there, memory, rng)
