"""Sampling a latent from its prior and decoding it.

Offers: sampler of LatentVariable

    z ~ p(z),   x = decode(T z)

For autoencoders with a prior, normalising flows and generators. The temperature T scales the latent: below 1 samples are
more typical and less varied. Decoding draws nothing, so a sample is a function of its seed's latent.

The trajectory shows the model's own stages from z to x where it has them (a flow, layer by layer), or else a walk from the
latent of another draw, z(t) = cos(πt/2) z′ + sin(πt/2) z, whose every point has the prior's distribution if that is normal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor
from torch.utils._pytree import tree_map

from gencli.config import opt
from gencli.core import Batch, LatentVariable, Model, Rng, Spec
from gencli.guidance._base import PLAIN, Guidance
from gencli.samplers._base import Frame, Sampler

WALK = 24


class Prior(Sampler):
    """One call of the decoder."""

    interface = LatentVariable

    @dataclass(frozen=True)
    class Config:
        temperature: float = opt(1.0, "scales the latent; below 1 = more typical, less varied", low=0)
        path: Literal["stages", "walk"] = opt(
            "stages", "what a trajectory shows: the model's stages where it has them, or a walk through latent space"
        )

    def frames(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        self.check(model)
        Guidance.of(guidance).only_scale("prior")
        known = _known(model, cond)
        yield Frame(cast(LatentVariable, model).decode(self._latent(model, n, rng, known), **known), 0, 1)

    def trajectory(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        self.check(model)
        known = _known(model, cond)
        z = self._latent(model, n, rng, known)
        stages = getattr(model, "stages", None) if self.config.path == "stages" else None
        if stages is not None:
            shown = stages(z, **known)
            yield from (Frame(x, i, len(shown)) for i, x in enumerate(shown))
            return
        other = self._latent(model, n, rng.at("walk"), known)
        for i in range(WALK):
            at = z if i == WALK - 1 else _between(other, z, i / (WALK - 1))
            yield Frame(cast(LatentVariable, model).decode(at, **known), i, WALK)

    def _latent(self, model: Model, n: int, rng: Rng, cond: Batch) -> Any:
        z = cast(LatentVariable, model).prior(n, rng.at("prior"), **cond)
        heat = self.config.temperature
        return z if heat == 1 else tree_map(lambda part: part * heat, z)


def _known(model: Model, cond: Batch) -> Batch:
    return {key: value for key, value in cond.items() if key in model.spec.cond}


def _between(start: Any, end: Any, t: float) -> Any:
    """Latents on the quarter circle from `start` (t = 0) to `end` (t = 1)."""

    def mixed(a: Tensor, b: Tensor) -> Tensor:
        return math.cos(math.pi * t / 2) * a + math.sin(math.pi * t / 2) * b

    return tree_map(mixed, start, end)
