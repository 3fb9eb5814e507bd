"""Super-resolution: the means of square blocks of pixels are measured.

Offers: linear

    y_b = (1/f²) Σ over the f×f pixels of block b

In each block one orthonormal vector is constant, with the singular value 1/f; the others are not seen. Measurements are
images `(C, H/f, W/f)`. Raises GencliError where the factor does not divide the sides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.config import opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.operators._base import LinearOperator
from gencli.operators._transforms import with_first


class SuperResolution(LinearOperator):
    """Means of blocks."""

    @dataclass(frozen=True)
    class Config:
        factor: int = opt(4, "pixels of a block's side", low=2)

    def __init__(self, config: Config, x: Field) -> None:
        super().__init__(config, x)
        channels, height, width = self.shape
        f = config.factor
        if height % f or width % f:
            raise GencliError(
                f"blocks of {f}×{f} do not fit images of {width}×{height}", "give a factor that divides both sides"
            )
        self.small = (channels, height // f, width // f)
        self.basis = with_first(torch.ones(f * f, dtype=torch.float64))
        values = torch.zeros(*self.small, f * f, dtype=torch.float64)
        values[..., 0] = 1 / f
        self.values = values.flatten()

    def _blocks(self, x: Tensor) -> Tensor:
        f, (c, h, w) = self.config.factor, self.small
        return x.view(-1, c, h, f, w, f).permute(0, 1, 2, 4, 3, 5).reshape(-1, c, h, w, f * f)

    def rotate(self, x: Tensor) -> Tensor:
        return (self._blocks(x) @ self.basis.T.to(x)).flatten(1)

    def back(self, c: Tensor) -> Tensor:
        f, (channels, h, w) = self.config.factor, self.small
        blocks = c.view(-1, channels, h, w, f * f) @ self.basis.to(c)
        return blocks.view(-1, channels, h, w, f, f).permute(0, 1, 2, 4, 3, 5).reshape(-1, *self.shape)

    def lift(self, c: Tensor) -> Tensor:
        return c.view(-1, *self.small, self.config.factor**2)[..., 0]

    def lower(self, y: Tensor) -> Tensor:
        return F.pad(y[..., None], (0, self.config.factor**2 - 1)).flatten(1)
