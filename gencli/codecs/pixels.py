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
from gencli.core import Batch, Spec


class Pixels(BaseCodec):
    """x in [low, 1]; grey level k of V sits at `low + (1 - low) k / (V - 1)`, and decoding rounds to the nearest.

    Points have no grey levels and pass as they are.
    """

    @dataclass(frozen=True)
    class Config:
        range: Literal["-1,1", "0,1"] = opt("-1,1", "least and greatest value in model space")

    def spec(self, data: Spec) -> Spec:
        self._points = data.x.kind == "points"
        self._vocab = data.x.vocab or 256
        self._size = data.x.size
        if self._points:
            return data
        return dataclasses.replace(data, x=dataclasses.replace(data.x, range=(self._low, 1.0)))

    @property
    def _low(self) -> float:
        return -1.0 if self.config.range == "-1,1" else 0.0

    def encode(self, batch: Batch) -> Batch:
        if self._points:
            return batch
        steps = self._vocab - 1
        grid = (batch["x"].float() * (steps / 255)).round() / steps if steps < 255 else batch["x"].float() / 255
        return {**batch, "x": grid * (1 - self._low) + self._low}

    def decode(self, batch: Batch) -> Batch:
        if self._points:
            return batch
        unit = (batch["x"].double() - self._low) / (1 - self._low)
        return {**batch, "x": (unit.clamp(0, 1) * 255).round().to(torch.uint8)}

    def log_det(self, batch: Batch) -> Tensor:
        """Relative to grey levels one apart: a density in model space times the bin width is a probability."""
        each = 0.0 if self._points else math.log((1 - self._low) / (self._vocab - 1)) * self._size
        return torch.full((len(batch["x"]),), each, dtype=torch.float64)
