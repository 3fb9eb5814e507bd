"""Least Squares Quantization in PCM: a palette of colours by k-means (Lloyd, 1982).

Offers: encode, reconstruct

    k(x) = argmin_k |x − c_k|²,   c_k = mean of the pixels whose colour is k,   L = min_k |x − c_k|²

Each pixel becomes one of K colours, as for Image GPT (Chen et al., 2020; K = 512), whose `gencli train imagegpt --codec
palette` it serves; any number of channels, one included. Nothing is learned by gradient: training has no optimiser, a step's
pixels move the colours by moving averages of Lloyd's update (`gencli/nn/quantise.py`).

Ours: the first colours are pixels drawn with a chance proportional to their squared distance from those drawn before
(k-means++, Arthur & Vassilvitskii, 2007); colours that no pixel takes stay where they are. `encode` and `decode` use the
colours rounded to grey levels, of equal ones the first, so that decoding and encoding again changes nothing.

x is `(C, H, W)` in a range; codes are `(N, H, W)` in 0 … K−1. The loss is a mean over an item's numbers, mean over items.

Raises GencliError for data that are not continuous images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli import core
from gencli.config import opt
from gencli.core import Batch, Field, Losses, Model, Phase, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.nn.quantise import Quantiser, assign

PIXELS = 1 << 15  # that the first colours are drawn from


class Palette(Model):
    """K colours."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    training_only = ("quantiser.statistics.",)
    compilable = ()
    shardable = ()

    @dataclass(frozen=True)
    class Config:
        codes: int = opt(512, "number of colours K", low=2)
        decay: float = opt(0.95, "decay of the colours' moving averages", low=0, high=0.9999)

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        x = spec.x
        if len(x.shape) != 3 or x.range is None:
            raise GencliError(
                f"palette needs images (channels, height, width) with a range, got {x.kind} of shape {x.shape}",
                "use image data and the pixels codec",
            )
        self.quantiser = Quantiser(config.codes, x.shape[0], "ema", config.decay, restart=0)
        self.latent = Field("codes", x.shape[1:], vocab=config.codes)
        self.low, self.high = x.range
        self.steps = (x.vocab or 256) - 1

    @property
    def device(self) -> torch.device:
        return self.quantiser.codebook.device

    def phases(self) -> list[Phase]:
        return [Phase("colours")]  # without modules: its turn gathers, `after_step` moves the colours

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """The first colours, by k-means++ over pixels of the first batches."""
        each = self.latent.size
        pixels: list[Tensor] = []
        while sum(map(len, pixels)) < min(PIXELS, count * each):
            pixels.append(next(data)["x"].to(self.device).movedim(1, -1).flatten(0, -2))
        rows = torch.cat(pixels)
        order = rng.at("pixels").uniform((1, len(rows)))[0].argsort().to(rows.device)
        self.quantiser.codebook.copy_(spread_out(rows[order[:PIXELS]], self.config.codes, rng))
        self.quantiser.statistics.epoch.fill_(count * each)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        quantised = self.quantiser(batch["x"])
        each = quantised.commitment.detach()
        perplexity, usage = self.quantiser.usage()
        return {"loss": each.mean(), "each": each, "perplexity": perplexity, "usage": usage}

    def after_step(self, turn: Turn) -> None:
        self.quantiser.update()

    @property
    def colours(self) -> Tensor:
        """`(K, C)`, each channel at a grey level."""
        unit = (self.quantiser.codebook - self.low) / (self.high - self.low)
        return (unit * self.steps).round() / self.steps * (self.high - self.low) + self.low

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Codes `(N, H, W)`."""
        with core.full_precision(x.device):
            colours = self.colours
            first = (colours[:, None] == colours).all(-1).long().argmax(1)  # of equal colours
            rows = x.to(colours.dtype).movedim(1, -1)
            return first[assign(rows.flatten(0, -2), colours)].view(rows.shape[:-1])

    def decode(self, z: Tensor) -> Tensor:
        """x from codes `(N, H, W)`."""
        return torch.nn.functional.embedding(z, self.colours).movedim(-1, 1)

    def reconstruct(self, x: Tensor) -> Tensor:
        """x in the colours of the palette."""
        return self.decode(self.encode(x))


def spread_out(rows: Tensor, count: int, rng: Rng) -> Tensor:
    """`count` of the rows `(M, C)`, each drawn in proportion to its squared distance from the nearest one before it.

    When nothing is apart from those any more, the others repeat the first.
    """
    u = rng.at("spread").uniform((1, count), torch.float64)[0]
    made = [rows[int(u[0] * len(rows))]]
    apart = (rows - made[0]).square().sum(1)
    for chance in u[1:]:
        if not bool((apart > 0).any()):
            made.append(made[0])
            continue
        made.append(rows[int(rng.multinomial(apart[None], chance[None].to(rows.device)))])
        apart = torch.minimum(apart, (rows - made[-1]).square().sum(1))
    return torch.stack(made)
