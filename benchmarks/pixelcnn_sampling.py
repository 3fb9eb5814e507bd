"""How much the row caches save: sampling 28×28 images pixel by pixel, against one batched forward a pixel.

    python benchmarks/pixelcnn_sampling.py [--images 64] [--batch 16] [--side 28] [--rounds 3]

Paired: every round measures both on the same batch and the ratio is taken within the round. The full pass is timed over
`--pixels` pixels and scaled to all of them. Equality is between `--images` images with caches and without, from the
same uniform numbers, at `--equal` pixels a side (28 takes long).
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from torch import Tensor

from gencli.core import Field, Rng, Spec
from gencli.models.autoregressive._family import AutoregressiveModel
from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from gencli.models.autoregressive.pixelcnn import PixelCNN
from gencli.samplers.next_token import NextTokenSampler

MODELS: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "pixelcnn": (PixelCNN, {}),
    "gated-pixelcnn": (GatedPixelCNN, {}),
}


def make(name: str, side: int, dtype: torch.dtype, vocab: int = 256) -> Any:
    """A model with random weights large enough for the logits to matter."""
    kind, settings = MODELS[name]
    torch.manual_seed(0)
    model = kind.make(settings, Spec(Field("image", (1, side, side), vocab=vocab)))
    for weight in model.parameters():
        weight.data.mul_(1.5)
    return model.to(dtype).eval()


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
    frames = sampler.frames(model, model.spec, len(seeds), Rng.rows(seeds), {})
    return list(frames)[-1].x


def seconds(model: Any, batch: int, pixels: int) -> tuple[float, float]:
    """Seconds of a whole batch with caches, and without (scaled from `pixels` full passes)."""
    began = time.perf_counter()
    x = sample(model, range(batch))
    cached = time.perf_counter() - began
    tokens = x.flatten(1)
    began = time.perf_counter()
    for _ in range(pixels):
        model.logits(tokens)
    return cached, (time.perf_counter() - began) / pixels * tokens.shape[1]


def equal(model: Any, images: int, batch: int) -> float:
    """Share of images that are equal with and without caches."""
    same = []
    for first in range(0, images, batch):
        seeds = range(first, min(first + batch, images))
        same.append((sample(model, seeds) == sample(Naive(model), seeds)).flatten(1).all(1))
    return float(torch.cat(same).double().mean())


def main() -> None:
    """Print the table."""
    read = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    for name, default in (("images", 64), ("batch", 16), ("side", 28), ("rounds", 3), ("pixels", 8), ("equal", 12)):
        read.add_argument(f"--{name}", type=int, default=default)
    given = read.parse_args()
    print(f"batch {given.batch}, {given.side}x{given.side}, {torch.get_num_threads()} threads")
    print(f"{'model':16} {'dtype':8} {'cached s':>9} {'full s':>9} {'ratio':>7}  equal at {given.equal}x{given.equal}")
    with torch.no_grad():
        for name in MODELS:
            for dtype in (torch.float32, torch.float64):
                model = make(name, given.side, dtype)
                pairs = [seconds(model, given.batch, given.pixels) for _ in range(given.rounds)]
                ratio = statistics.median(full / cached for cached, full in pairs)
                cached, full = (statistics.median(column) for column in zip(*pairs, strict=True))
                same = equal(make(name, given.equal, dtype), given.images, given.batch)
                kind = str(dtype).removeprefix("torch.")
                print(f"{name:16} {kind:8} {cached:9.2f} {full:9.2f} {ratio:7.1f}  {same:.1%} of {given.images}")


if __name__ == "__main__":
    main()
