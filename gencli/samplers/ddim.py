"""Denoising Diffusion Implicit Models (Song, Meng & Ermon, 2020). arXiv:2010.02502

Offers: sample, encode

With t = σ here and s = σ there, in the coordinates x = x_0 + σ n, and z standard normal:

    x_s = D + √(s² − var) (x − D) / t + √var z,   var = η² s² (t² − s²) / t²

η = 0 is deterministic, an Euler step of dx/dσ = (x − D) / σ; η = 1 is DDPM's ancestral step with variance β̃. With η = 0 the
levels may ascend (`run(..., rise="step")`), which encodes data as noise; from σ = 0, where the direction is not defined, it
is taken at the first level above.

Ours: a clipped estimate D also sets the direction (x − D) / t; trailing spacing by default, because it starts at the
noisiest level (the paper's are `leading` and `quad`).

Errors: steps of 0 or above the model's levels; ascending levels with η > 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import Spacing, spaced


class Ddim(DiffusionSampler):
    """Few steps, deterministic with η = 0."""

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        eta: float = opt(0.0, "noise put back: 0 = none, 1 = as much as DDPM", low=0, high=1)
        spacing: Spacing = opt("trailing", "which of the model's levels are visited by the sampler's own schedule")

    def levels(self, model: Any) -> Tensor:
        if self.config.noise_schedule != "own":
            return super().levels(model)
        return spaced(model, self.config.steps, self.config.spacing, "ddim")

    def check(self, model: Any) -> None:
        super().check(model)
        if self.config.eta > 0 and model.meaning != "mean":
            raise GencliError(
                f"ddim with eta {self.config.eta} adds noise, which is wrong for an estimate of kind '{model.meaning}'",
                "use --eta 0",
            )

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        eta, at = self.config.eta, here if here > 0 else there
        memory["x0"] = x0 = denoise(x, at)
        direction = (x - x0) / at
        if there > here:
            if eta > 0:
                raise GencliError(f"ddim with eta {eta} cannot run from data to noise", "use --eta 0")
            return x + (there - here) * direction
        variance = (eta * there / here) ** 2 * (here**2 - there**2)
        x = x0 + (there**2 - variance).sqrt() * direction
        return x if eta == 0 or there == 0 else x + variance.sqrt() * rng.normal(x.shape).to(x)
