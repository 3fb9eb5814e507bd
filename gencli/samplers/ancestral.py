"""Denoising Diffusion Probabilistic Models (Ho, Jain & Abbeel, 2020). arXiv:2006.11239

Offers: sample

Ancestral sampling of the learned chain, or of any chain over some of its levels. With t = σ here and s = σ there, in the
coordinates x = x_0 + σ n:

    x_s = D + (s² / t²) (x − D) + √var z,   var = s² (t² − s²) / t² (`small`, β̃)  or  (1 + s²) (t² − s²) / (1 + t²) (`large`, β)

and no noise at the last step. `small` is right for data that are a point, `large` for data of unit variance; with all of the
levels the two hardly differ. `learned` (arXiv:2102.09672): log var = v log β + (1 − v) log β̃, elementwise, with v in [0, 1]
from the same network call; guidance leaves it alone. Equal to DDIM with eta 1 where var is β̃.

Errors: a number of steps below 0 or above the model's levels; a denoiser whose estimate is not a mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from gencli.config import opt
from gencli.core import Model, Rng
from gencli.errors import GencliError
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import Spacing, spaced, table_of


class Ancestral(DiffusionSampler):
    """DDPM's own sampler."""

    accepts: ClassVar[tuple[str, ...]] = ("mean",)

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        steps: int = opt(0, "network evaluations; 0 = every level the model was trained at")
        variance: Literal["auto", "small", "large", "learned"] = opt(
            "auto",
            "variance of a step: small β̃, large β, or between them as learned; auto = learned where it was, else small",
        )
        spacing: Spacing = opt("trailing", "which of the model's levels are kept by the sampler's own schedule")

    def levels(self, model: Any) -> Tensor:
        if self.config.noise_schedule != "own":
            return super().levels(model)
        return spaced(model, self.config.steps or len(table_of(model)), self.config.spacing, self.public_name())

    def check(self, model: Model) -> None:
        super().check(model)
        if self.config.variance == "learned" and not hasattr(model, "denoise_spread"):
            raise GencliError(
                f"ancestral with variance learned needs a model that learned one, {model.public_name()} did not",
                "use --variance small or large, or train iddpm",
            )

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        assert there <= here, "ancestral steps only remove noise"
        memory["x0"] = x0 = denoise(x, here)
        mean = x0 + (there / here) ** 2 * (x - x0)
        if there == 0:
            return mean
        fall = here**2 - there**2
        small, large = there**2 * fall / here**2, (1 + there**2) * fall / (1 + here**2)
        kind = self.config.variance
        if kind == "large":
            variance = large
        elif "spread" in memory and kind != "small":
            variance = small ** (1 - memory["spread"]) * large ** memory["spread"]
        else:
            variance = small
        return mean + variance.sqrt() * rng.normal(x.shape).to(x)
