"""SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations (Meng et al., 2021). arXiv:2108.01073

Offers: sample

A guide g (strokes, a collage, any image) is perturbed to a level and denoised from there by ancestral sampling:

    x_{t₀} = g + σ(t₀) n,   then the reverse chain from t₀ to 0

`strength` is t₀ as a share of the model's own time: 0 returns the guide, 1 depends on it by what is left at the noisiest level.
With a mask the pixels that are kept are those of the guide at each level, and exactly so at the end (the paper's algorithm 3).

The guide is `known` among the conditions `(N, *shape)`, in the model's space, and what is kept of it `keep` (true = stays).
Raises GencliError without a guide, and for a denoiser whose estimate is not a mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Model, Rng, Spec
from gencli.guidance._base import PLAIN, Guidance
from gencli.samplers._base import Frame
from gencli.samplers._diffusion import Memory
from gencli.samplers._editing import Editor
from gencli.samplers._levels import Spacing, spaced
from gencli.samplers.ancestral import Ancestral


class Sdedit(Editor):
    """From an image, part of the way up and down again."""

    @dataclass(frozen=True)
    class Config(Ancestral.Config):
        steps: int = opt(50, "steps from noise to data, of which the share `strength` is made")
        strength: float = opt(0.5, "how far up: 0 = the image itself, 1 = hardly anything of it", low=0, high=1)
        spacing: Spacing = opt("trailing", "which of the model's levels are visited by the sampler's own schedule")

    def levels(self, model: Any) -> Tensor:
        if self.config.noise_schedule != "own":
            every = super().levels(model)
        else:
            every = spaced(model, self.config.steps, self.config.spacing, self.public_name())
        return every[len(every) - 1 - round(self.config.strength * self.config.steps) :]

    def begin(self, model: Any, noise: Tensor, level: Tensor, memory: Memory) -> Tensor:
        return memory["known"].to(noise) + level.to(noise) * noise

    def frames(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        if len(self.levels(model)) > 1:
            yield from super().frames(model, spec, n, rng, cond, guidance)
        else:
            yield Frame(self.recalled(model, spec, n, cond)["known"], 0, 1)

    def evaluations(self, model: Model, spec: Spec) -> int:
        return len(self.levels(model)) - 1
