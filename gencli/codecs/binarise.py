"""uint8 images to images of zeros and ones, by chance or by a threshold, and back.

The grey level is the probability of a one, drawn anew every time an item is used (Salakhutdinov & Murray, 2008; Burda et al.,
2015), or compared with one half. What is lost cannot be had back: bits/dim then count the zeros and ones, not the images.
Decoding takes probabilities too, which become grey.

Raises GencliError for data that are not images.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import torch

from gencli.codecs._base import BaseCodec
from gencli.config import opt
from gencli.core import Batch, Rng, Spec
from gencli.errors import GencliError


class Binarise(BaseCodec):
    """x is 0 or 1, in floating point."""

    @dataclass(frozen=True)
    class Config:
        by: Literal["chance", "threshold"] = opt(
            "chance", "a one with the grey level's probability, or from one half on"
        )

    def spec(self, data: Spec) -> Spec:
        if data.x.kind != "image":
            raise GencliError(
                f"codec binarise makes images black and white, the data are {data.x.kind}", "use image data"
            )
        return dataclasses.replace(data, x=dataclasses.replace(data.x, vocab=2, range=(0.0, 1.0)))

    def encode(self, batch: Batch) -> Batch:
        grey = batch["x"].float() / 255
        return {**batch, "x": (grey >= 0.5).float() if self.config.by == "threshold" else grey}

    def draw(self, batch: Batch, rng: Rng) -> Batch:
        if self.config.by == "threshold":
            return batch
        x = batch["x"]
        return {**batch, "x": (rng.at("binarise").uniform(x.shape).to(x) < x).to(x)}

    def decode(self, batch: Batch) -> Batch:
        return {**batch, "x": (batch["x"].double().clamp(0, 1) * 255).round().to(torch.uint8)}
