"""Images moved by affine maps, as often differentiable as one likes; beyond its edge an image is mirrored about it.

`blit` copies the nearest pixel: exact where a map lands on pixels, as a mirror image, a quarter turn and a shift by whole
pixels do. `warp` is for all others (Karras et al., arXiv:2006.06676, appendix B): the image is doubled by the filter of an
orthogonal wavelet, sampled bilinearly, and halved by the same filter turned round, so that nothing aliases and the filters
cancel where nothing moves. Ours: places in the doubled image are counted from the filter's centre of mass, which is not half
its length.

Sampling is linear in the image. torch has its first derivative, its transpose; here that one's derivative is the map itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

SYM6 = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Daubechies' least asymmetric wavelet of six vanishing moments: the low-pass filter, of sum √2."""
DELAY = sum(k * tap for k, tap in enumerate(SYM6)) / sum(SYM6) - 5  # of the filter's middle, in doubled pixels
EDGE = 3  # pixels beyond the image that the filters need


def blit(x: Tensor, back: Tensor) -> Tensor:
    """Images `(N, C, H, W)`; `back` `(N, 3, 3)` maps a place in the result, in pixels from its middle, to one in x."""
    height, width = x.shape[2:]
    there = _places(height, width, 0.0, back) @ back[:, :2].transpose(1, 2)
    column, row = (
        _reflected((there[:, :, i] + (side - 1) / 2).round().long(), side) for i, side in ((0, width), (1, height))
    )
    at = (row * width + column)[:, None].expand(-1, x.shape[1], -1)
    return x.flatten(2).gather(2, at).reshape(x.shape)


def warp(x: Tensor, back: Tensor) -> Tensor:
    """As `blit`, between pixels."""
    n, channels, height, width = x.shape
    planes = _mirrored(x).reshape(n * channels, 1, height + 2 * EDGE, width + 2 * EDGE)
    f = torch.tensor(SYM6, dtype=x.dtype, device=x.device)
    f = f / f.sum()
    for line, stride, padding in ((f[:, None], (2, 1), (11, 0)), (f[None], (1, 2), (0, 11))):
        planes = F.conv_transpose2d(planes, 2 * line[None, None], stride=stride, padding=padding)
    wide = planes.reshape(n, channels, *planes.shape[2:])
    grown = [2 * (side + 2 * EDGE) for side in (height, width)]
    sampled = Sampled.apply(wide, _grid(back.to(x), grown, (height, width)))
    planes = sampled[:, :, 1:-1, 1:-1].reshape(n * channels, 1, grown[0] - 2, grown[1] - 2)
    for line, step in ((f[:, None], (2, 1)), (f[None], (1, 2))):
        planes = F.conv2d(planes, line[None, None], stride=step)
    return planes.reshape(x.shape)


def _mirrored(x: Tensor) -> Tensor:
    """x with its own rows and columns beyond its edges."""
    for dim in (2, 3):
        at = torch.arange(-EDGE, x.shape[dim] + EDGE, device=x.device)
        x = x.index_select(dim, _reflected(at, x.shape[dim]))
    return x


def _reflected(at: Tensor, side: int) -> Tensor:
    """The pixel that is seen at a place, inside or outside."""
    at = at % (2 * side)
    return torch.where(at < side, at, 2 * side - 1 - at)


def _places(height: int, width: int, delay: float, like: Tensor) -> Tensor:
    """`(H·W, 3)`: x, y and 1 of each pixel, from the middle, which is `delay` pixels on."""
    y, x = (
        torch.arange(side, dtype=like.dtype, device=like.device) - (side - 1) / 2 - delay for side in (height, width)
    )
    return torch.stack([x.repeat(height), y.repeat_interleave(width), torch.ones_like(x).repeat(height)], -1)


def _grid(back: Tensor, grown: list[int], sides: tuple[int, int]) -> Tensor:
    """Where torch shall look in the doubled image, −1 to 1 from edge to edge, for each place of the grown result."""
    late = DELAY - 0.5  # of a doubled pixel, behind the middle of the two that a pixel became
    at = _places(grown[0], grown[1], late, back)
    there = (at * torch.tensor([0.5, 0.5, 1.0]).to(at)) @ back[:, :2].transpose(1, 2)
    size = torch.tensor([sides[1], sides[0]], dtype=back.dtype, device=back.device)
    return ((2 * there + late) / size).reshape(len(back), *grown, 2)


class Sampled(torch.autograd.Function):
    """Bilinear sampling at a fixed grid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape = x.shape
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        (grid,) = ctx.saved_tensors
        return Spread.apply(gradient[0], grid, ctx.shape), None


class Spread(torch.autograd.Function):
    """Its transpose."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, grid: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        x = gradient.new_zeros(shape)
        made = torch.ops.aten.grid_sampler_2d_backward(gradient, x, grid, 0, 2, False, [True, False])
        return torch.as_tensor(made[0])

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> Any:
        (grid,) = ctx.saved_tensors
        return Sampled.apply(gradient[0], grid), None, None
