"""Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019). arXiv:1907.05600

Offers: sample

At each level σ_i from the noisiest on, T steps of Langevin dynamics, x carried from level to level as it is:

    x ← x + (α_i / 2) (D(x, σ_i) − x) / σ_i² + √α_i z,      α_i = ε σ_i² / σ_L² = step_size σ_i²

and at the end D(x, σ_L), without noise (`denoise`; arXiv:2006.09011), L T + 1 evaluations in all. These are the paper's
symbols; its code writes α for our α/2 and √(2α) for √α.

NCSN has 10 levels, T = 100 and ε = 2·10⁻⁵ with σ_L = 0.01: a step_size of 0.2 by these symbols, 0.4 by its code's. NCSNv2
has 232 levels, T = 5 and ε = 6.2·10⁻⁶ in its code's symbols: 0.124. Every level of a table of up to 256 is visited, unless
`steps` asks for fewer; of other models 50, evenly in log σ.

Ours: the step is given relative to σ², so that one default is stable for every model whatever its σ_L; T follows from how
far apart the levels are unless it is given, so that at most half of σ_i is left of the noise of the level before,
(1 − step_size / 2)^T σ_(i−1) ≤ σ_i / 2; the start is the model's, not uniform noise.

Errors: a number of steps below 0 or above the levels of a model with a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import NoiseSchedule, scheduled, table_of
from gencli.samplers.langevin import langevin_step

SHORT, MANY = 256, 50  # levels


class AnnealedLangevin(DiffusionSampler):
    """Langevin dynamics while the noise falls, which mixes modes early and sharpens late."""

    accepts: ClassVar[tuple[str, ...]] = ("mean",)
    chain: ClassVar[bool] = True
    own: ClassVar[NoiseSchedule] = "logsnr"

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        steps: int = opt(0, "levels; 0 = all of a model's that has up to 256 (NCSN 10, NCSNv2 232), else 50", low=0)
        inner: int = opt(0, "steps T at each level (NCSN 100, NCSNv2 5); 0 = enough to forget the level before", low=0)
        step_size: float = opt(0.2, "ε over σ²; stable below 4", low=1e-6, high=3.99)
        denoise: bool = opt(True, "end with the estimate of x0")

    def levels(self, model: Any) -> Tensor:
        each = self.visited(model)
        last = [each[-1:], each.new_zeros(1)] if self.config.denoise else [each[-1:]]
        return torch.cat([each.repeat_interleave(self.config.inner or self.enough(each)), *last])

    def enough(self, each: Tensor) -> int:
        """Steps that leave at most half of a level's σ of the noise of the level before."""
        apart = float((each[:-1] / each[1:]).max()) if len(each) > 1 else 1.0
        kept = abs(1 - self.config.step_size / 2)
        return math.ceil(math.log(2 * apart) / -math.log(kept)) if kept > 0 else 1

    def visited(self, model: Any) -> Tensor:
        """The levels, each once."""
        steps, schedule = self.config.steps, self.config.noise_schedule
        short = model.levels is not None and len(model.levels) <= SHORT
        if short and steps == 0 and schedule == "own":
            return table_of(model)
        count = steps or (min(len(model.levels), MANY) if short else MANY)
        return scheduled(model, count, self.own if schedule == "own" else schedule, "annealed-langevin")[:-1]

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        return langevin_step(denoise, x, here, there, memory, rng, self.config.step_size)
