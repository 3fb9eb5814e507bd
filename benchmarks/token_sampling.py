"""How much the caches save: sampling token by token, against the plain loop of one batched forward a token.

Convolutional networks keep rows of activations, transformers keys and values. The full pass is timed over a few tokens and
scaled to all of them. Equality is between samples with caches and without, from the same uniform numbers, of smaller grids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._frame import Case, Outcome, Side
from gencli.core import Field, Rng, Spec
from gencli.models.autoregressive._family import AutoregressiveModel
from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from gencli.models.autoregressive.gpt import GPT
from gencli.models.autoregressive.pixelcnn import PixelCNN
from gencli.models.autoregressive.pixelcnnpp import PixelCNNPP
from gencli.samplers.next_token import NextTokenSampler


@dataclass(frozen=True)
class Kind:
    """A model, and what it is asked for.

    Args:
        model: its class.
        settings: of it.
        side: of the square grid.
        image: pixels, or codes.
    """

    model: type[Any]
    settings: Mapping[str, Any]
    side: int = 28
    image: bool = True

    def make(self, side: int, dtype: torch.dtype, vocab: int = 256) -> Any:
        """The model with random weights large enough for the logits to matter."""
        torch.manual_seed(0)
        field = (
            Field("image", (1, side, side), vocab=vocab) if self.image else Field("codes", (side, side), vocab=vocab)
        )
        model = self.model.make(dict(self.settings), Spec(field))
        for weight in model.parameters():
            weight.data.mul_(1.5)
        return model.to(dtype).eval()


MODELS: dict[str, Kind] = {
    "pixelcnn": Kind(PixelCNN, {}),
    "gated-pixelcnn": Kind(GatedPixelCNN, {}),
    "pixelcnnpp": Kind(PixelCNNPP, {"net": {"name": "pixelcnnpp", "width": 32, "blocks": 1}}),
    "gpt": Kind(GPT, {"net": {"name": "transformer", "width": 256, "depth": 6, "heads": 4}}, 16, image=False),
}


class Naive:
    """The same model without caches: a full pass a token."""

    def __init__(self, model: Any) -> None:
        self.model, self.spec, self.device, self.order = model, model.spec, model.device, model.order
        self.logits = model.logits

    def start(self, n: int, **cond: Tensor) -> Any:
        """The state before the first token."""
        return AutoregressiveModel.start(self.model, n, **cond)

    def next(self, token: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """The next token's logits from all logits."""
        return AutoregressiveModel.next(self.model, token, state)


def sample(model: Any, seeds: range) -> Tensor:
    """Images of these seeds."""
    sampler = NextTokenSampler.make()
    with torch.no_grad():
        frames = sampler.frames(model, model.spec, len(seeds), Rng.rows(seeds), {})
        return list(frames)[-1].x


def side_of(who: str, name: str, side: int, batch: int, pixels: int) -> Side:
    """A whole batch with caches, or full passes for `pixels` of its pixels."""
    model = MODELS[name].make(side, torch.float32)
    if who == "gencli":
        return lambda: sample(model, range(batch))
    tokens = torch.randint(256, (batch, side * side), generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def passes() -> None:
        for _ in range(pixels):
            model.logits(tokens)

    return passes


def unequal(name: str, side: int, images: int) -> Outcome:
    """Share of images that differ with and without caches."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        model, seeds = MODELS[name].make(side, dtype), range(images)
        same = (sample(model, seeds) == sample(Naive(model), seeds)).flatten(1).all(1)
        kind = str(dtype).removeprefix("torch.")
        found[f"share of {images} images that differ, {side}×{side}, {kind}"] = (1 - float(same.double().mean()), 0.0)
    return found


def cases(folder: Path, mini: bool) -> list[Case]:
    """One a network."""
    small, images = (4, 4) if mini else (10, 32)
    pixels, batch = 4, 4 if mini else 16
    sides = {name: 5 if mini else kind.side for name, kind in MODELS.items()}
    return [
        Case(
            f"{name} sampling, {side}×{side}, batch {batch}",
            "a full pass a token",
            lambda who, name=name, side=side: side_of(who, name, side, batch, pixels),
            rounds=1 if mini else 3,
            outcome=lambda ours, theirs, name=name: unequal(name, small, images),
            aim=20.0,
            share={"peer": pixels / side**2},
        )
        for name, side in sides.items()
    ]
