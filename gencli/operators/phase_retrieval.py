"""Phase retrieval: the magnitudes of a Fourier transform are measured, as DPS does (Chung et al., 2022). arXiv:2209.14687

Offers: measure

    y = |F(pad(x))|

The image is surrounded by zeros, a `margin` of its side on each side, and the transform is orthonormal. Not linear; an image
and the same turned by 180 degrees, or moved, have the same measurement. Measurements are `(C, H + 2p, W + 2q)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.config import opt
from gencli.errors import GencliError
from gencli.operators._base import Operator


class PhaseRetrieval(Operator):
    """Magnitudes."""

    @dataclass(frozen=True)
    class Config:
        margin: float = opt(0.25, "zeros on each side, as a share of the side", low=0, high=2)

    def measure(self, x: Tensor) -> Tensor:
        tall, wide = (round(side * self.config.margin) for side in self.shape[1:])
        shown = F.pad((x + 1) / 2, (wide, wide, tall, tall))  # zeros are black
        return torch.fft.fft2(shown, norm="ortho").abs()

    def seen(self, y: Tensor) -> Tensor:
        bright = torch.fft.fftshift(y, dim=(-2, -1)).log1p()
        scaled = 2 * bright / bright.amax((1, 2, 3), keepdim=True) - 1
        return F.interpolate(scaled, self.shape[1:], mode="area")

    def taken(self, picture: Tensor) -> Tensor:
        raise GencliError(
            "a picture holds no measurement of phase-retrieval", "give the image itself, without --measured"
        )
