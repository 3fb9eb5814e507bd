"""What images are like, without a model: three classical priors ρ of images `(N, C, H, W)`, channel by channel.

    tikhonov   ½ |K x|²   K the differences of neighbours along both axes, 0 at the far edges
    tv         Σ |K x|    the length of the two differences at each pixel: total variation
    wavelet    |K x|₁     K the details of the orthonormal Haar transform, as deep as both sides halve

ρ is a function of K x, so that solvers need K and Kᵀ; and for the last two, the sums of lengths, `shrunk`, the exact proximal
step of such a sum: argmin over c of Σ |c| + |c − z|² / 2τ.

Raises GencliError for wavelets of images whose sides do not halve.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.errors import GencliError


def shrunk(z: Tensor, amount: Tensor | float) -> Tensor:
    """The soft threshold of the lengths over the last dimension: z (1 − τ/|z|) where |z| > τ, else 0."""
    length = z.norm(dim=-1, keepdim=True)
    return z * (1 - amount / length.clamp(min=torch.finfo(z.dtype).tiny)).clamp(min=0)


def differences(x: Tensor) -> Tensor:
    """`(N, C, H, W, 2)`: the next pixel less this one, down and to the right."""
    down, right = x.diff(dim=2), x.diff(dim=3)
    return torch.stack([F.pad(down, (0, 0, 0, 1)), F.pad(right, (0, 1))], dim=-1)


def differences_back(c: Tensor) -> Tensor:
    """The transpose of `differences`."""
    down, right = c[:, :, :-1, :, 0], c[:, :, :, :-1, 1]
    return F.pad(down, (0, 0, 1, 0)) - F.pad(down, (0, 0, 0, 1)) + F.pad(right, (1, 0)) - F.pad(right, (0, 1))


def haar(x: Tensor, depth: int) -> Tensor:
    """The orthonormal Haar transform, of x's shape: means in the upper left corner, details beside and below it."""
    x = x.clone()
    height, width = x.shape[-2:]
    for level in range(depth):
        corner = x[..., : height >> level, : width >> level]
        for dim in (-2, -1):
            even, odd = corner.unflatten(dim, (-1, 2)).unbind(dim)
            corner = torch.cat([even + odd, even - odd], dim) / 2**0.5
        x[..., : height >> level, : width >> level] = corner
    return x


def haar_back(c: Tensor, depth: int) -> Tensor:
    """The inverse, and transpose, of `haar`."""
    c = c.clone()
    height, width = c.shape[-2:]
    for level in reversed(range(depth)):
        corner = c[..., : height >> level, : width >> level]
        for dim in (-1, -2):
            total, apart = corner.chunk(2, dim)
            corner = torch.stack([total + apart, total - apart], dim).flatten(dim - 1, dim) / 2**0.5
        c[..., : height >> level, : width >> level] = corner
    return c


class TotalVariation:
    """Flat, with edges."""

    bound: ClassVar[float] = 8.0  # of |K|²

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape

    def map(self, x: Tensor) -> Tensor:
        """K x `(N, C, H, W, k)`."""
        return differences(x)

    def transpose(self, c: Tensor) -> Tensor:
        """Kᵀ c."""
        return differences_back(c)

    def value(self, x: Tensor) -> Tensor:
        """ρ(x) `(N,)`."""
        return self.map(x).norm(dim=-1).flatten(1).sum(1)


class Tikhonov(TotalVariation):
    """Smooth."""

    def value(self, x: Tensor) -> Tensor:
        return self.map(x).square().flatten(1).sum(1) / 2


class Wavelet(TotalVariation):
    """Made of few pieces."""

    bound: ClassVar[float] = 1.0

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.depth = 0
        while not any((side >> self.depth) % 2 for side in shape[1:]):
            self.depth += 1
        if not self.depth:
            raise GencliError(
                f"wavelets halve the sides of images, {shape[2]}×{shape[1]} does not halve", "use --prior tv"
            )
        self.details = torch.ones(shape, dtype=torch.bool)
        self.details[:, : shape[1] >> self.depth, : shape[2] >> self.depth] = False

    def map(self, x: Tensor) -> Tensor:
        return (haar(x, self.depth) * self.details.to(x))[..., None]

    def transpose(self, c: Tensor) -> Tensor:
        return haar_back(c[..., 0] * self.details.to(c), self.depth)


PRIORS: dict[str, type[TotalVariation]] = {"tikhonov": Tikhonov, "wavelet": Wavelet, "tv": TotalVariation}
