"""uint8 images to floats in a fixed range and back: the only place where pixel values are scaled."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gencli.codecs._base import BaseCodec
from gencli.config import opt
from gencli.core import Batch, Field, Spec


class Pixels(BaseCodec):
    """x in [low, 1]; grey level k of V sits at `low + (1 - low) k / (V - 1)`, and decoding rounds to the nearest.

    Points have no grey levels and pass as they are. Images among the conditions are scaled as x is.
    """

    @dataclass(frozen=True)
    class Config:
        range: Literal["-1,1", "0,1"] = opt("-1,1", "least and greatest value in model space")

    def spec(self, data: Spec) -> Spec:
        self._points = data.x.kind == "points"
        self._vocab = data.x.vocab or 256
        self._size = data.x.size
        self._beside = {key: field.vocab or 256 for key, field in data.cond.items() if is_picture(field)}
        cond = {key: self._scaled(field) if key in self._beside else field for key, field in data.cond.items()}
        return dataclasses.replace(data, x=data.x if self._points else self._scaled(data.x), cond=cond)

    def _scaled(self, field: Field) -> Field:
        return dataclasses.replace(field, range=(self._low, 1.0))

    @property
    def _low(self) -> float:
        return -1.0 if self.config.range == "-1,1" else 0.0

    def encode(self, batch: Batch) -> Batch:
        vocabs = self._beside if self._points else {"x": self._vocab, **self._beside}
        return {**batch, **{key: self._onto(batch[key], vocab) for key, vocab in vocabs.items() if key in batch}}

    def _onto(self, levels: Tensor, vocab: int) -> Tensor:
        """uint8 grey levels, of which there are `vocab`, in the range."""
        steps = vocab - 1
        grid = (levels.float() * (steps / 255)).round() / steps if steps < 255 else levels.float() / 255
        return grid * (1 - self._low) + self._low

    def decode(self, batch: Batch) -> Batch:
        if self._points:
            return batch
        unit = (batch["x"].double() - self._low) / (1 - self._low)
        return {**batch, "x": (unit.clamp(0, 1) * 255).round().to(torch.uint8)}

    def log_det(self, batch: Batch) -> Tensor:
        """Relative to grey levels one apart: a density in model space times the bin width is a probability."""
        each = 0.0 if self._points else math.log((1 - self._low) / (self._vocab - 1)) * self._size
        return torch.full((len(batch["x"]),), each, dtype=torch.float64)


def is_picture(field: Field) -> bool:
    """Whether a condition is an image of grey levels as data have them."""
    return field.kind == "image" and len(field.shape) == 3 and field.range is None
