"""Denoising Diffusion Probabilistic Models (Ho, Jain & Abbeel, 2020). arXiv:2006.11239

Offers: sample

Ancestral sampling of the learned chain, or of any chain over some of its levels. With t = σ here and s = σ there, in the
coordinates x = x_0 + σ n:

    x_s = D + (s² / t²) (x − D) + √var z,   var = s² (t² − s²) / t² (`small`, β̃)  or  (1 + s²) (t² − s²) / (1 + t²) (`large`, β)

and no noise at the last step. `small` is right for data that are a point, `large` for data of unit variance; with all of the
levels the two hardly differ. Equal to DDIM with eta 1 where var is β̃.

Errors: a number of steps below 0 or above the model's levels; a denoiser whose estimate is not a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.samplers._diffusion import Denoise, DiffusionSampler, Spacing, spaced


class Ancestral(DiffusionSampler):
    """DDPM's own sampler."""

    accepts: ClassVar[tuple[str, ...]] = ("mean",)

    @dataclass(frozen=True)
    class Config:
        steps: int = opt(0, "network evaluations; 0 = every level the model was trained at")
        variance: Literal["small", "large"] = opt("small", "variance of a step: small β̃, large β")
        spacing: Spacing = opt("trailing", "which levels are kept when steps are fewer")
        clip: bool = opt(True, "keep estimates inside the data's range")

    def levels(self, model: Any) -> Tensor:
        steps = len(model.levels) if self.config.steps == 0 and model.levels is not None else self.config.steps
        return spaced(model, steps, self.config.spacing, "ancestral")

    def step(
        self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: dict[str, Any], rng: Rng
    ) -> Tensor:
        assert there <= here, "ancestral steps only remove noise"
        memory["x0"] = x0 = denoise(x, here)
        mean = x0 + (there / here) ** 2 * (x - x0)
        if there == 0:
            return mean
        fall = here**2 - there**2
        small = self.config.variance == "small"
        variance = there**2 * fall / here**2 if small else (1 + there**2) * fall / (1 + here**2)
        return mean + variance.sqrt() * rng.normal(x.shape).to(x)
