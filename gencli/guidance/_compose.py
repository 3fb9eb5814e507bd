"""One denoiser out of a model, its conditions and a `Guidance`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from gencli.core import Batch
from gencli.errors import GencliError
from gencli.guidance._base import Denoise, Guidance
from gencli.guidance.autoguidance import away_from
from gencli.guidance.cfg import guided
from gencli.guidance.classifier import climbing
from gencli.guidance.clip import clipped
from gencli.guidance.interval import checked, within


def composed(
    denoise: Callable[..., Tensor],
    cond: Batch,
    guidance: Guidance,
    span: tuple[float, float] | None,
    label: Tensor | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> Denoise:
    """`(x, sigma) -> x0`, guided.

    Args:
        denoise: the model's.
        cond: the conditions that the model takes, and that guidance drops.
        guidance: how.
        span: what the estimate is clipped to; None = not.
        label: the class that a classifier guides towards, whether the model takes it or not.
        kept: the conditions that guidance does not drop: images that x belongs to.

    Raises:
        GencliError: a classifier without a label to climb towards; an empty interval.
    """
    kept = kept or {}
    denoise = partial(denoise, **kept)
    plain = guided(denoise, cond, 1.0)
    made = (
        guided(denoise, cond, guidance.scale)
        if guidance.guide is None
        else away_from(denoise, _with_its_own(guidance.guide, kept), cond, guidance.scale)
    )
    if guidance.classifier is not None:
        if label is None:
            raise GencliError("a classifier guides towards a class, and no class was asked for", "give --class")
        made = climbing(made, guidance.classifier, label, guidance.strength)
    if guidance.interval is not None:
        made = within(made, plain, *checked(*guidance.interval))
    return clipped(made, span)


def _with_its_own(guide: Any, kept: Mapping[str, Tensor]) -> Callable[..., Tensor]:
    """A guide that is given only the conditions that it takes."""

    def denoise(x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        given = {**kept, **cond}
        return guide.denoise(x, sigma, **{key: value for key, value in given.items() if key in guide.spec.cond})

    return denoise
