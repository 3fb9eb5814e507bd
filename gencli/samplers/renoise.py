"""Consistency Models (Song et al., 2023). arXiv:2303.01469

Offers: sample

Multistep consistency sampling (algorithm 1): jump to the end, put noise back, jump again. With t = σ here, s = σ there and z
standard normal

    x_s = f(x, t) + √(s² − ε²) z

where ε is the least level of the model, whose end point f is. `steps` jumps are as many calls of the network; one is f of pure
noise. The levels are evenly spaced in σ^(1/7) from the greatest, as many and one more, without the last; the paper searches
for good ones, which lie near these (its 2 steps on ImageNet are at 80 and 2.0 or so, ours at 80 and 2.5). A model that jumps
from some levels only (`dmd` from pure noise alone) is asked at these.

A consistency trajectory model (`ctm`) can jump to any level: γ-sampling (Kim et al., 2023; arXiv:2310.02279) jumps to
r = max(√(1 − γ²) s, ε) and puts back √(s² − r²) z, no noise at all with γ = 0, and the above with γ = 1.

Errors: γ below 1 of a model that jumps to the end only; more jumps than a model has levels to jump from; a denoiser that is no
consistency function: noise must be put back to what is at the end of its path already.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Model, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import ends, scheduled


class Renoise(DiffusionSampler):
    """Jump, put noise back, jump again."""

    accepts: ClassVar[tuple[str, ...]] = ("endpoint",)

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        steps: int = opt(1, "jumps from noise to data, each one call of the network", low=1)
        gamma: float = opt(1.0, "γ: 1 = jump to the end and renoise; below, jump to a level of a ctm", low=0, high=1)

    def check(self, model: Model) -> None:
        super().check(model)
        if self.config.gamma < 1 and not hasattr(model, "toward"):
            raise GencliError(
                f"renoise with gamma {self.config.gamma:g}: {model.public_name()} jumps to the end of its paths only",
                "use --gamma 1, or sample a ctm",
            )

    def levels(self, model: Any) -> Tensor:
        chosen = self.config.noise_schedule
        if model.levels is not None:
            return scheduled(model, self.config.steps, "model" if chosen == "own" else chosen, self.public_name())
        even = scheduled(model, self.config.steps + 1, self.own if chosen == "own" else chosen, self.public_name())
        return torch.cat([even[:-2], even[-1:]])

    def recalled(self, model: Any, spec: Spec, n: int, cond: Batch) -> Memory:
        return {"least": ends(model)[0]}

    def asked(self, model: Any, memory: Memory) -> Callable[..., Tensor]:
        """The end, or what a jump to the level in memory is made of."""
        if self.config.gamma == 1:
            return super().asked(model, memory)
        return lambda x, sigma, **cond: model.toward(x, sigma, memory["end"], **cond)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        gamma = self.config.gamma
        end = memory["end"] = (there * math.sqrt(1 - gamma**2)).clamp(min=memory["least"])
        memory["x0"] = x0 = denoise(x, here)
        reached = x0 if gamma == 1 else torch.lerp(x0, x, (end / here).to(x))
        if there == 0:
            return reached
        return reached + (there**2 - end**2).clamp(min=0).sqrt() * rng.normal(x.shape).to(x)
