"""uint8 images to two whole numbers a sub-pixel, its high bits and its low bits, and back.

Of V grey levels, token t becomes ⌊t / 2^low⌋ in the first half of the channels and t mod 2^low in the second half, so that a
model may draw an image with few grey levels first, and the rest of its depth afterwards. V stays the field's `vocab`: the
halves have ⌈V / 2^low⌉ and 2^low values.

Raises GencliError for data that are not images, and for low bits that leave no high ones.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from gencli.codecs.tokens import Tokens
from gencli.config import opt
from gencli.core import Batch, Spec
from gencli.errors import GencliError


class BitPlanes(Tokens):
    """An image of 2C channels: C of high bits, C of low bits."""

    @dataclass(frozen=True)
    class Config(Tokens.Config):
        low: int = opt(5, "low bits of a grey level, which come second", low=1, high=7)

    def spec(self, data: Spec) -> Spec:
        made = super().spec(data)
        if len(data.x.shape) != 3:
            raise GencliError(
                f"codec bit-planes splits images, the data are {data.x.kind} of shape {data.x.shape}", "use image data"
            )
        if self._vocab <= 1 << self.config.low:
            raise GencliError(
                f"{self.config.low} low bits leave no high ones of {self._vocab} grey levels", "give fewer low bits"
            )
        channels, *sides = data.x.shape
        return dataclasses.replace(made, x=dataclasses.replace(made.x, shape=(2 * channels, *sides)))

    def encode(self, batch: Batch) -> Batch:
        made = super().encode(batch)
        step = 1 << self.config.low
        return {**made, "x": torch.cat([made["x"] // step, made["x"] % step], dim=1)}

    def decode(self, batch: Batch) -> Batch:
        high, low = batch["x"].chunk(2, dim=1)
        tokens = (high * (1 << self.config.low) + low).clamp(max=self._vocab - 1)
        return super().decode({**batch, "x": tokens})
