"""Sampling a latent from its prior and decoding it.

Offers: sampler of LatentVariable

    z ~ p(z),   x = decode(T z)

For autoencoders with a prior, normalising flows and generators. The temperature T scales the latent: below 1 samples are
more typical and less varied. Decoding draws nothing, so a sample is a function of its seed's latent.

`truncation` is for generators alone, and means what their papers mean: of a style-based one ψ, which moves every style
towards the mean style, w̄ + ψ (w − w̄), 1 leaving it and 0 making the mean image (Karras et al., arXiv:1812.04948, appendix B);
of others the greatest number a latent may have, numbers beyond being drawn again (Brock et al., arXiv:1809.11096).

Raises GencliError for a truncation of a model that knows none.

The trajectory shows the model's own stages from z to x where it has them (a flow, layer by layer), or else a walk from the
latent of another draw, z(t) = cos(πt/2) z′ + sin(πt/2) z, whose every point has the prior's distribution if that is normal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from torch import Tensor
from torch.utils._pytree import tree_map

from gencli.config import opt
from gencli.core import Batch, LatentVariable, Model, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance._base import PLAIN, Guidance
from gencli.samplers._base import Frame, Sampler

WALK = 24


class Prior(Sampler):
    """One call of the decoder."""

    interface = LatentVariable
    unguided: ClassVar[str] = "decodes a latent once"

    @dataclass(frozen=True)
    class Config:
        temperature: float = opt(1.0, "scales the latent; below 1 = more typical, less varied", low=0)
        truncation: float | None = opt(
            None, "of generators: ψ of style-based ones (0.7), the greatest latent number of others (2)", low=0
        )
        path: Literal["stages", "walk"] = opt(
            "stages", "what a trajectory shows: the model's stages where it has them, or a walk through latent space"
        )

    def frames(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        self.check(model)
        Guidance.of(guidance).only_scale("prior")
        known = _known(model, cond)
        yield Frame(self._decoded(model, self._latent(model, n, rng, known), known), 0, 1)

    def trajectory(
        self, model: Model, spec: Spec, n: int, rng: Rng, cond: Batch, guidance: float | Guidance = PLAIN
    ) -> Iterator[Frame]:
        self.check(model)
        known = _known(model, cond)
        z = self._latent(model, n, rng, known)
        staged = self.config.path == "stages" and self.config.truncation is None
        stages = getattr(model, "stages", None) if staged else None
        if stages is not None:
            shown = stages(z, **known)
            yield from (Frame(x, i, len(shown)) for i, x in enumerate(shown))
            return
        other = self._latent(model, n, rng.at("walk"), known)
        for i in range(WALK):
            at = z if i == WALK - 1 else _between(other, z, i / (WALK - 1))
            yield Frame(self._decoded(model, at, known), i, WALK)

    def check(self, model: Model) -> None:
        super().check(model)
        if self.config.truncation is not None and not hasattr(model, "truncate"):
            raise GencliError(
                f"--truncation {self.config.truncation:g} is of generators, model {model.public_name()} knows none",
                "give --temperature instead",
            )

    def _decoded(self, model: Model, z: Any, cond: Batch) -> Tensor:
        if self.config.truncation is not None:
            z = cast(Any, model).truncate(z, self.config.truncation, **cond)
        return cast(LatentVariable, model).decode(z, **cond)

    def _latent(self, model: Model, n: int, rng: Rng, cond: Batch) -> Any:
        z = cast(LatentVariable, model).prior(n, rng.at("prior"), **cond)
        heat = self.config.temperature
        return z if heat == 1 else tree_map(lambda part: part * heat, z)


def _known(model: Model, cond: Batch) -> Batch:
    also = ("known", "keep") if getattr(model, "completes", False) else ()
    return {key: value for key, value in cond.items() if key in model.spec.cond or key in also}


def _between(start: Any, end: Any, t: float) -> Any:
    """Latents on the quarter circle from `start` (t = 0) to `end` (t = 1)."""

    def mixed(a: Tensor, b: Tensor) -> Tensor:
        return math.cos(math.pi * t / 2) * a + math.sin(math.pi * t / 2) * b

    return tree_map(mixed, start, end)
