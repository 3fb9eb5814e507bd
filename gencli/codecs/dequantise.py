"""uint8 images to floats spread evenly over their grey level's bin, and back.

    x = (k + u) / V,   u ~ U[0, 1),   k = 0 … V − 1 the grey level

For models that are densities (Theis, van den Oord & Bethge, arXiv:1511.01844): without the noise a density of values on a grid
grows without bound, and with it  E_u[log p((k + u) / V)] − D log V ≤ log P(k),  the probability of the grey levels being what
p holds over their bins. The noise is drawn anew every time an item is used. u keeps V / 2²⁴ away from 0 and 1, so that
rounding x to float32 never moves it into the next bin: decoding gives k back, whatever was drawn. Data without grey levels,
such as points, are a continuum already and pass as they are.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from gencli.codecs._base import BaseCodec
from gencli.core import Batch, Rng, Spec


class Dequantise(BaseCodec):
    """x in (0, 1); between `encode` and `draw` it is the grey level itself."""

    def spec(self, data: Spec) -> Spec:
        self._vocab = (data.x.vocab or 256) if data.x.kind == "image" else 0
        self._size = data.x.size
        if not self._vocab:
            return data
        return dataclasses.replace(data, x=dataclasses.replace(data.x, vocab=self._vocab, range=(0.0, 1.0)))

    def encode(self, batch: Batch) -> Batch:
        if not self._vocab:
            return batch
        return {**batch, "x": (batch["x"].float() * ((self._vocab - 1) / 255)).round()}

    def draw(self, batch: Batch, rng: Rng) -> Batch:
        if not self._vocab:
            return batch
        level = batch["x"].double() if batch["x"].device.type != "mps" else batch["x"]
        edge = self._vocab * 2.0**-24
        inside = rng.at("dequantise").uniform(level.shape).to(level).clamp(edge, 1 - edge)
        return {**batch, "x": ((level + inside) / self._vocab).float()}

    def decode(self, batch: Batch) -> Batch:
        if not self._vocab:
            return batch
        level = (batch["x"].double() * self._vocab).floor().clamp(0, self._vocab - 1)
        return {**batch, "x": (level * (255 / (self._vocab - 1))).round().to(torch.uint8)}

    def log_det(self, batch: Batch) -> Tensor:
        """Relative to grey levels one apart, as all codecs."""
        each = -self._size * math.log(self._vocab) if self._vocab else 0.0
        return torch.full((len(batch["x"]),), each, dtype=torch.float64)
