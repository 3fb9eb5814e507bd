"""Pixel Recurrent Neural Networks: the Diagonal BiLSTM (van den Oord, Kalchbrenner & Kavukcuoglu, 2016). arXiv:1601.06759

Offers: sequence

    [o, f, i, g](r, s) = K_ss [h(r, s−1), h(r−1, s)] + K_is x(r, s),   c′ = c(r, s−1),   all pixels of a diagonal at once

A 7×7 convolution with mask A, then residual blocks around two LSTMs, of which the second goes from right to left. Each row
of the map is moved one step on from the row above, so that a diagonal is a column and a step of the recurrence one
multiplication for both directions; then it is moved back. The right-to-left map is shifted down by one row before it is
added, or a pixel would see what is to its right. K_is is a 1×1 convolution with mask B. The first states are zero.

Ours: in the first block the right-to-left LSTM reads its pixel's own tokens too (it tells them to lower rows only). As
published, a row's last pixel is seen by none of the next row's pixels that the first filter leaves out of its reach: no map
holds it in its own row, because of mask A. So every pixel sees all that come before it, from one block on.

Sampling keeps the states of the row above and of the pixel to the left; the right-to-left states of a row are made when
the row is finished. A step costs one pixel of every layer, and a row one pass from right to left.

Tokens `(N, *x.shape)` with x `(C, H, W)` pixels or `(h, w)` codes; logits `(N, *x.shape, V)`. Conditions are not used: the
method is unconditional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._causal import Left, Line, initialise
from gencli.networks._recurrent import RecurrentBlock, RecurrentImageNet, channels_of, lstm


class DiagonalBilstm(RecurrentImageNet, Component):
    """Diagonals in both directions."""

    role: ClassVar[str] = "sequence"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(16, "features h of a state; 2h between layers", low=1)
        layers: int = opt(7, "LSTM layers, each of two directions", low=0)
        first: Literal[3, 5, 7, 9] = opt(7, "kernel of the first layer")
        head: int = opt(32, "feature maps of the layer before the logits", low=1)

    def __init__(self, config: Config, x: Field, vocab: int, cond: Mapping[str, Field] | None = None) -> None:
        channels = channels_of(x)
        blocks = [_Block(config.width, channels) for _ in range(config.layers)]
        super().__init__(x, vocab, "diagonal-bilstm", config.width, config.first, config.head, blocks)
        for block in blocks[:1]:
            block.add_own(channels * self.read.features)
        self.config = config


class _Block(RecurrentBlock):
    """One layer of both directions, 0 to the right and 1 to the left."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__(width, channels)
        inward = (Left(2 * width, 4 * width, 1, False, channels, gates=4) for _ in range(2))
        across = (nn.Linear(2 * width, 4 * width, bias=False) for _ in range(2))  # from beside, from above
        self.inward: Any = nn.ModuleList(inward)
        self.across: Any = nn.ModuleList(across)
        self.own: nn.Conv2d | None = None

    def add_own(self, inputs: int) -> None:
        """Let the right-to-left direction read its pixel's tokens."""
        self.own = nn.Conv2d(inputs, 4 * self.width, 1, bias=False)
        initialise(self.own, inputs)

    def states(self, x: Tensor, read: Tensor) -> Tensor:
        gates = torch.stack([self.inward[0](x), self._leftwards(x, read).flip(3)])
        h = unskew(self._run(skew(gates.movedim(2, 4))), x.shape[3]).movedim(4, 2)  # (2, N, width, H, W)
        return h[0] + F.pad(h[1].flip(3), (0, 0, 1, 0))[:, :, :-1]

    def _leftwards(self, x: Tensor, read: Tensor) -> Tensor:
        gates = self.inward[1](x)
        return gates if self.own is None else gates + self.own(read)

    def _run(self, gates: Tensor) -> Tensor:
        """States `(2, N, H, D, width)`, diagonal by diagonal, from what x gives to the gates `(2, N, H, D, 4 width)`."""
        weight = torch.stack([layer.weight.T for layer in self.across])
        h = cell = gates.new_zeros(*gates.shape[:3], self.width)
        made = []
        for given in gates.unbind(3):
            above = F.pad(h, (0, 0, 1, 0))[:, :, :-1]
            across = torch.bmm(torch.cat([h, above], dim=3).flatten(1, 2), weight)
            h, cell = lstm(given + across.view_as(given), cell, dim=3)
            made.append(h)
        return torch.stack(made, dim=3)

    # A line's rows are both directions' states of the row above (N, width, W); of every pixel it keeps h and c to the right,
    # and x, of which the states to the left are made when the row is finished.

    def blank(self, like: Tensor, breadth: int) -> Line:
        zeros = like.new_zeros(len(like), self.width, breadth)
        return Line((zeros, zeros), (), ())

    def begin_row(self, line: Line, read: Tensor) -> Line:
        kept = torch.stack(line.columns, dim=2)
        right, x = kept[:, : self.width], kept[:, 2 * self.width :]
        gates = self._leftwards(x[:, :, None], read[:, :, None]).squeeze(2)
        h = cell = torch.zeros_like(right[:, :, 0])
        made = []
        for given, above in zip(reversed(gates.unbind(2)), reversed(line.rows[1].unbind(2)), strict=True):
            h, cell = lstm(given + self.across[1](torch.cat([h, above], dim=1)), cell, dim=1)
            made.append(h)
        return Line((right, torch.stack(made[::-1], dim=2)), (), ())

    def pixel(self, line: Line, x: Tensor, column: int) -> tuple[Tensor, Tensor]:
        right, left = (row[:, :, column] for row in line.rows)
        h = cell = torch.zeros_like(right)
        if line.columns:
            h, cell = line.columns[-1][:, : 2 * self.width].chunk(2, dim=1)
        gates = self.inward[0].pixel((), x) + self.across[0](torch.cat([h, right], dim=1))
        h, cell = lstm(gates, cell, dim=1)
        return x + self.up.pixel((), h + left), torch.cat([h, cell, x], dim=1)


def skew(x: Tensor) -> Tensor:
    """`(…, H, W, F)` to `(…, H, H + W − 1, F)`: row r is moved r places on, with zeros beside it."""
    *lead, high, wide, features = x.shape
    flat = F.pad(x, (0, 0, 0, high)).flatten(-3, -2)[..., :-high, :]
    return flat.reshape(*lead, high, high + wide - 1, features)


def unskew(x: Tensor, wide: int) -> Tensor:
    """The inverse of `skew`, for rows of `wide` pixels."""
    *lead, high, skewed, features = x.shape
    flat = F.pad(x.flatten(-3, -2), (0, 0, 0, high))
    return flat.reshape(*lead, high, skewed + 1, features)[..., :wide, :]
