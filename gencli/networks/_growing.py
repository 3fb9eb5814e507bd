"""What growing networks share: at which side they are, and pictures at several sides.

Level l has the l-th grid of `networks/_style.py`. A network at level l works at that side alone; while the next is faded in,
with a share a from 0 to 1,

    picture = (1 − a) twice(picture of l) + a (picture of l + 1)

and a critic mixes alike what it makes of the picture at l + 1 and of its halving. Pictures always have the data's sides: each
pixel of a level stands for a square of equal ones.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

BOX = (1.0, 1.0)


class Growth(NamedTuple):
    """The level, and the share of the next where that is faded in (it may be 0 or 1)."""

    level: int
    share: float | None = None

    @property
    def top(self) -> int:
        """The greatest level that works."""
        return self.level + (self.share is not None)


def at_grid(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A picture `(N, C, H, W)` at smaller sides that divide its own: means over squares."""
    factor = x.shape[-1] // grid[1]
    return x if factor == 1 else F.avg_pool2d(x, factor)


def in_squares(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """A picture at greater sides, each pixel a square."""
    factor = grid[1] // x.shape[-1]
    return x if factor == 1 else x.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


def seen_at(x: Tensor, growth: Growth, grids: list[tuple[int, int]]) -> Tensor:
    """Data as a network of that growth can make them."""
    coarse = in_squares(at_grid(x, grids[growth.level]), grids[-1])
    if growth.share is None:
        return coarse
    return coarse.lerp(in_squares(at_grid(x, grids[growth.top]), grids[-1]), growth.share)
