"""Shifted convolutions with weight normalisation, and what they keep while sampling.

A convolution padded above and to the sides, or above and to the left, sees earlier pixels only. Its filters are w = g v / |v|
(Salimans & Kingma, 2016, arXiv:1602.07868), and g and the bias start from data: every channel of the first batch has mean 0
and a given spread. Directions are stored `(out, rows, columns, in)`, so that one row of a filter is a matrix.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Filters(nn.Module):
    """The parameters g, v and b of a layer; `size` is the spread that its outputs start with."""

    def __init__(self, ins: int, outs: int, kernel: tuple[int, int], size: float = 1.0) -> None:
        super().__init__()
        self.size = size
        self.direction = nn.Parameter(torch.empty(outs, *kernel, ins))
        self.magnitude = nn.Parameter(torch.full((outs,), size))
        self.bias = nn.Parameter(torch.zeros(outs))
        nn.init.normal_(self.direction, std=0.05)

    @property
    def scale(self) -> Tensor:
        """g / |v| `(out,)`."""
        return self.magnitude / self.direction.flatten(1).norm(dim=1)

    @property
    def weight(self) -> Tensor:
        """The filters `(out, rows, columns, in)`."""
        return self.direction * self.scale[:, None, None, None]

    @torch.no_grad()
    def settle(self, *inputs: Tensor) -> None:
        """Give every channel of these inputs' outputs mean 0 and the spread `size`."""
        self.magnitude.fill_(1)
        self.bias.zero_()
        spread, mean = torch.std_mean(self.forward(*inputs), dim=(0, 2, 3), correction=0)
        factor = self.size / (spread + 1e-5)
        self.magnitude.copy_(factor)
        self.bias.copy_(-mean * factor)


@contextlib.contextmanager
def settling(net: nn.Module) -> Iterator[None]:
    """Within, every layer of `net` is set from the first inputs that reach it."""
    layers = [module for module in net.modules() if isinstance(module, Filters)]
    hooks = [layer.register_forward_pre_hook(lambda layer, inputs: layer.settle(*inputs)) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class Shifted(Filters):
    """A convolution over a pixel, the rows above, and the columns to both sides or (`left`) to the left.

    Args:
        ins, outs: channels.
        kernel: rows and columns.
        left: whether nothing to the right is seen.
        stride: 2 keeps every second row and column, the first ones.
        size: see `Filters`.
    """

    def __init__(
        self, ins: int, outs: int, kernel: tuple[int, int], left: bool, stride: int = 1, size: float = 1.0
    ) -> None:
        super().__init__(ins, outs, kernel, size)
        self.stride, self.top = stride, kernel[0] - 1
        before = kernel[1] - 1 if left else kernel[1] // 2
        self.sides = (before, kernel[1] - 1 - before)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.permute(0, 3, 1, 2).contiguous()
        return F.conv2d(F.pad(x, (*self.sides, self.top, 0)), weight, self.bias, self.stride)

    def rows(self, seen: Tensor) -> Tensor:
        """A row `(N, out, W)` of the whole filters, from the rows that they see `(N, in, rows, W)`."""
        return F.conv2d(F.pad(seen, self.sides), self.weight.permute(0, 3, 1, 2), self.bias, self.stride).squeeze(2)

    def above(self, row: Tensor) -> Tensor:
        """What the row above gives to a row `(N, out, W)`, with the bias, of filters of two rows."""
        return F.conv1d(F.pad(row, self.sides), self.weight[:, 0].transpose(1, 2), self.bias, self.stride)

    def point(self, seen: Tensor, scale: Tensor) -> Tensor:
        """What the last row of the filters gives to a pixel `(N, out)`, from `(N, columns · in)`; without the bias."""
        return scale * F.linear(seen, self.direction[:, -1].flatten(1))


class Grown(Filters):
    """The convolution of stride 2 backwards: a pixel gives to the two rows and the columns that it stands for."""

    def __init__(self, ins: int, outs: int, kernel: tuple[int, int], left: bool) -> None:
        super().__init__(ins, outs, kernel)
        self.skipped = 0 if left else kernel[1] // 2

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """As high and wide as `like`."""
        made = F.conv_transpose2d(x, self.weight.permute(3, 0, 1, 2).contiguous(), self.bias, 2)
        return made[:, :, : like.shape[2], self.skipped : self.skipped + like.shape[3]]

    def row(self, x: Tensor, second: int, breadth: int) -> Tensor:
        """The first or the second row `(N, out, breadth)` that a row `(N, in, W)` gives."""
        made = F.conv_transpose1d(x, self.weight[:, second].permute(2, 0, 1), self.bias, 2)
        return made[:, :, self.skipped : self.skipped + breadth]

    def point(self, x: Tensor, row: int, column: int) -> Tensor:
        """One of the four pixels `(N, out)` that a pixel `(N, in)` gives."""
        return self.scale * F.linear(x, self.direction[:, row, column]) + self.bias


class Cell(NamedTuple):
    """What one convolution to the left keeps: tensors with the batch first, replaced and never written to."""

    columns: tuple[Tensor, ...]  # its input in this row so far, (N, in) each
    above: tuple[Tensor, ...]  # what the row above gives to this row, (N, out) a column
    scale: Tensor  # (N, out), views of one row

    @classmethod
    def begin(cls, conv: Shifted, before: Cell | None, like: Tensor) -> Cell:
        """At the start of a row as wide as `like` `(N, …, W)`, the one before being complete."""
        n, ins = len(like), conv.direction.shape[-1]
        row = torch.stack(before.columns, dim=2) if before else like.new_zeros(n, ins, like.shape[-1])
        return cls((), conv.above(row).unbind(2), conv.scale.expand(n, -1))

    def plus(self, more: Tensor) -> Cell:
        """With something added to every column's sum `(N, out)`."""
        return self._replace(above=tuple(above + more for above in self.above))

    def step(self, conv: Shifted, x: Tensor, column: int) -> Tensor:
        """The output `(N, out)` in a column, the newest input being `x` `(N, in)`."""
        left = self.columns[-1] if self.columns else torch.zeros_like(x)
        return self.above[column] + conv.point(torch.cat([left, x], dim=1), self.scale)

    def push(self, x: Tensor) -> Cell:
        """With the next column's input."""
        return self._replace(columns=(*self.columns, x))


def both_signs(x: Tensor) -> Tensor:
    """elu of the features and of their negatives: `(N, F, …)` to `(N, 2 F, …)`."""
    return F.elu(torch.cat([x, -x], dim=1))


def gate(x: Tensor) -> Tensor:
    """The first half of the features times σ of the second."""
    a, b = x.chunk(2, dim=1)
    return a * b.sigmoid()
