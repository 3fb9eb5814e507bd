"""What the recurrent networks of PixelRNN share: a masked convolution, residual blocks around an LSTM, the logits.

    [o, f, i, g] = K_ss h′ + K_is x,   c = σ(f) ⊙ c′ + σ(i) ⊙ tanh(g),   h = σ(o) ⊙ tanh(c),   y = x + K_up h

A block's x and y have 2h features a pixel, its states h; K_is and K_up are masked (mask B), K_ss need not be: the states
h′, c′ that a pixel is given belong to whole pixels before it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from gencli.core import Field
from gencli.networks._causal import CausalImageNet, Left, Line, Masked, Tokens


def lstm(gates: Tensor, cell: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The state h and the cell c from the four gates' sums along `dim` and the cell before."""
    o, f, i, g = gates.chunk(4, dim=dim)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


class RecurrentBlock(nn.Module, ABC):
    """x plus what an LSTM makes of it; `width` is the number of features of a state."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.width = width
        self.up = Left(width, 2 * width, 1, False, channels)

    def forward(self, x: Tensor, read: Tensor) -> Tensor:
        """`(N, 2 width, H, W)` from the layer before and from the tokens' features `(N, C f, H, W)`."""
        return x + self.up(self.states(x, read))

    @abstractmethod
    def states(self, x: Tensor, read: Tensor) -> Tensor:
        """`(N, width, H, W)`."""

    @abstractmethod
    def blank(self, like: Tensor, breadth: int) -> Line:
        """The line before the first row, for the batch, dtype and device of `like`."""

    @abstractmethod
    def begin_row(self, line: Line, read: Tensor) -> Line:
        """The line of the next row; `read` `(N, C f, W)` are the tokens' features of the row just finished."""

    @abstractmethod
    def pixel(self, line: Line, x: Tensor, column: int) -> tuple[Tensor, Tensor]:
        """y `(N, 2 width)` of one pixel, and what the line keeps of it."""


class RecurrentImageNet(CausalImageNet):
    """The first layer with mask A, `blocks` of one kind, two 1×1 layers to the logits."""

    def __init__(
        self, x: Field, vocab: int, network: str, width: int, first: int, head: int, blocks: Sequence[RecurrentBlock]
    ) -> None:
        super().__init__(x, vocab, network)
        self.read = Tokens(x, vocab, width)
        self.first = Masked(self.channels * self.read.features, 2 * width, first, True, self.channels)
        self.blocks = nn.ModuleList(blocks)
        self.head = self.make_head(2 * width, head)

    @property
    def stack(self) -> list[RecurrentBlock]:
        """The residual blocks."""
        return cast("list[RecurrentBlock]", list(self.blocks))

    def features(self, x: Tensor, h: Tensor) -> Tensor:
        y = self.first(x)
        for block in self.stack:
            y = block(y, x)
        return y

    def begin_row(self, lines: tuple[Line, ...], h: Tensor) -> tuple[Line, ...]:
        if not lines:
            zero = h.new_zeros(len(h), self.first.outputs)
            return (Line((), (), (zero,) * self.breadth), *(block.blank(h, self.breadth) for block in self.stack))
        read = torch.stack(lines[0].columns, dim=2)
        made = (block.begin_row(line, read) for block, line in zip(self.stack, lines[1:], strict=True))
        return (self.first.begin_row(lines[0]), *made)

    def pixel(self, lines: tuple[Line, ...], x: Tensor, column: int) -> tuple[Tensor, list[Tensor]]:
        y = self.first.pixel(lines[0], x, column)
        kept = []
        for block, line in zip(self.stack, lines[1:], strict=True):
            y, keep = block.pixel(line, y, column)
            kept.append(keep)
        return y, kept


def channels_of(x: Field) -> int:
    """Channels of a pixel: one of a grid of codes."""
    return x.shape[0] if len(x.shape) == 3 else 1
