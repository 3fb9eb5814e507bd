"""Nested Diffusion Processes for Anytime Image Generation (Elata, Kawar, Michaeli & Elad, 2023). arXiv:2305.19066

Offers: sample

Each outer step asks an inner diffusion for x̂_0, where DDIM asks the denoiser. With t = σ here, s = σ there, z normal:

    x̂_0 ~ DDIM from x_t at t to 0, in `inner` steps with `inner_eta`
    x_s = x̂_0 + √(s² − var) (x_t − x̂_0) / t + √var z,   var = η² s² (t² − s²) / t²

The denoiser gives the mean of all images that x_t may come from, x̂_0 is one of them: whoever stops early, or looks at a
trajectory, has a sample. One inner step is DDIM with `eta`, bit for bit, and with `eta` 1 DDPM's ancestral sampling; one outer
step is DDIM with `inner_eta`. It costs outer times inner network evaluations; fewer where the model was trained at fewer levels
below t than there are inner steps. Defaults are the authors': 25 outer steps with η = 0 and 4 inner ones, which are DDPM's for
their ImageNet (`inner_eta` 0.85 for text to image).

The law is the model's own, with many steps, where x̂_0 is drawn as x_0 is given x_t: with `inner_eta` 1. Below it x̂_0 keeps more
of x_t's noise, and samples spread too far: N(0.3, 0.5²) becomes one of deviation 0.55 with 0.85, and of 0.9 with 0.

Ours: inner levels are t and others of the model's own below it, evenly in its time, or as `noise_schedule` says.

Errors: steps of 0 or above the model's levels; a denoiser whose estimate is not a mean.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Model, Rng, Spec
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import Memory
from gencli.samplers._levels import table_of
from gencli.samplers.ddim import Ddim


class NestedDiffusion(Ddim):
    """A diffusion whose estimates are samples of another."""

    accepts: ClassVar[tuple[str, ...]] = ("mean",)

    @dataclass(frozen=True)
    class Config(Ddim.Config):
        steps: int = opt(25, "outer steps, each of which ends in an image")
        inner: int = opt(4, "network evaluations of an outer step", low=1)
        inner_eta: float = opt(1.0, "noise put back by inner steps: 0 = none, 1 = as much as DDPM", low=0, high=1)

    def recalled(self, model: Any, spec: Spec, n: int, cond: Batch) -> Memory:
        return {"table": table_of(model)}

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        inner, levels = self.within(memory["table"], here)
        x0 = x
        for i, (t, s) in enumerate(itertools.pairwise(levels)):
            x0 = inner.step(denoise, x0, t, s, {}, rng.at("inner", i))
        return super().step(lambda *_: x0, x, here, there, memory, rng)

    def within(self, table: Tensor, here: Tensor) -> tuple[Ddim, Tensor]:
        """The sampler of x̂_0 at a level, and what it visits: the level, some of the model's below it, and 0."""
        table = table.to(here)
        below = torch.cat([here[None], table[table < here]])
        steps = min(self.config.inner, len(below))
        inner = Ddim(Ddim.Config(steps=steps, noise_schedule=self.config.noise_schedule, eta=self.config.inner_eta))
        return inner, inner.levels(SimpleNamespace(levels=below)).to(here)

    def evaluations(self, model: Model, spec: Spec) -> int:
        table = table_of(model)
        return sum(len(self.within(table, here)[1]) - 1 for here in self.levels(model)[:-1])
