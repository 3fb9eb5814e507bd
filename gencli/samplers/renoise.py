"""Consistency Models (Song et al., 2023). arXiv:2303.01469

Offers: sample

Multistep consistency sampling (algorithm 1): jump to the end, put noise back, jump again. With t = σ here, s = σ there and z
standard normal

    x_s = f(x, t) + √(s² − ε²) z

where ε is the least level of the model, whose end point f is. `steps` jumps are as many calls of the network; one is f of pure
noise. The levels are evenly spaced in σ^(1/7) from the greatest, as many and one more, without the last; the paper searches
for good ones, which lie near these (its 2 steps on ImageNet are at 80 and 2.0 or so, ours at 80 and 2.5).

Errors: a denoiser that is no consistency function: noise must be put back to what is at the end of its path already.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Rng, Spec
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import ends, scheduled


class Renoise(DiffusionSampler):
    """Jump, put noise back, jump again."""

    accepts: ClassVar[tuple[str, ...]] = ("endpoint",)

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        steps: int = opt(1, "jumps from noise to data, each one call of the network", low=1)

    def levels(self, model: Any) -> Tensor:
        chosen = self.config.noise_schedule
        even = scheduled(model, self.config.steps + 1, self.own if chosen == "own" else chosen, self.public_name())
        return torch.cat([even[:-2], even[-1:]])

    def recalled(self, model: Any, spec: Spec, n: int, cond: Batch) -> Memory:
        return {"least": ends(model)[0]}

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        memory["x0"] = x0 = denoise(x, here)
        if there == 0:
            return x0
        return x0 + (there**2 - memory["least"] ** 2).sqrt() * rng.normal(x.shape).to(x)
