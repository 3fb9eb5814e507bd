"""Diffusion Posterior Sampling for General Noisy Inverse Problems (Chung et al., 2022). arXiv:2209.14687

Offers: sample

After each step of ancestral sampling, with D(x_t) the model's estimate of x_0 and the gradient taken through it,

    x_s ← x_s − ζ ∇_{x_t} |y − A D(x_t)|

in the coordinates of the paper, where noise and data have unit variance together: here x = x_0 + σ n, the step is multiplied
by √((1 + s²)(1 + t²)). A may be any operator. ζ = 0 is ancestral sampling, bit for bit.

Ours: by default 100 of the model's levels (the paper's are 1,000). Each step costs a pass backward besides the one forward.

Raises GencliError without a measurement, and for a denoiser whose estimate is not a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import Memory
from gencli.samplers._restoring import Measured, Restorer, led
from gencli.samplers.ancestral import Ancestral


class Dps(Restorer, Ancestral):
    """Ancestral sampling, led by the gradient of what is left to explain."""

    linear: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Config(Ancestral.Config, Measured):
        steps: int = opt(100, "network evaluations; 0 = every level the model was trained at")
        scale: float = opt(1.0, "ζ: how far each step follows the measurement", low=0)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        if self.config.scale == 0:
            return super().step(denoise, x, here, there, memory, rng)
        operator, y = memory["operator"], memory["y"]

        def left(x0: Tensor) -> Tensor:
            apart: Tensor = y - operator.measure(x0)
            return apart.flatten(1).norm(dim=1).sum()

        known, slope = led(denoise, x, here, memory, left)
        made = super().step(lambda *_: known, x, here, there, memory, rng)
        return made - self.config.scale * ((1 + here**2) * (1 + there**2)).sqrt() * slope
