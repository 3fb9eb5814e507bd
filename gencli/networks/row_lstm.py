"""Pixel Recurrent Neural Networks: the Row LSTM (van den Oord, Kalchbrenner & Kavukcuoglu, 2016). arXiv:1601.06759

Offers: sequence

    [o, f, i, g](r) = K_ss ∗ h(r−1) + K_is ∗ x(r),   row after row r, all columns of a row at once

A 7×7 convolution with mask A, then residual blocks around an LSTM that goes down the image: the input-to-state
convolution K_is has a 1×k filter with mask B, the state-to-state convolution K_ss a 1×k filter without mask, over the row
above. So a pixel sees a triangle above it, not all that comes before; `diagonal-bilstm` sees everything. The first states
are zero.

Sampling keeps the states of the row above, so that a step costs one pixel of every layer.

Tokens `(N, *x.shape)` with x `(C, H, W)` pixels or `(h, w)` codes; logits `(N, *x.shape, V)`. Conditions are not used: the
method is unconditional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._causal import Left, Line
from gencli.networks._recurrent import RecurrentBlock, RecurrentImageNet, channels_of, lstm


class RowLstm(RecurrentImageNet, Component):
    """Rows from top to bottom."""

    role: ClassVar[str] = "sequence"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(32, "features h of a state; 2h between layers", low=1)
        layers: int = opt(7, "LSTM layers", low=0)
        first: Literal[3, 5, 7, 9] = opt(7, "kernel of the first layer")
        kernel: Literal[3, 5, 7] = opt(3, "filter of an LSTM's two convolutions along a row")
        head: int = opt(64, "feature maps of the layer before the logits", low=1)

    def __init__(self, config: Config, x: Field, vocab: int, cond: Mapping[str, Field] | None = None) -> None:
        blocks = [_Block(config, channels_of(x)) for _ in range(config.layers)]
        super().__init__(x, vocab, "row-lstm", config.width, config.first, config.head, blocks)
        self.config = config


class _Block(RecurrentBlock):
    """One layer down the rows."""

    def __init__(self, config: RowLstm.Config, channels: int) -> None:
        super().__init__(config.width, channels)
        width = config.width
        self.inward = Left(2 * width, 4 * width, config.kernel, False, channels, gates=4)
        self.across = nn.Conv1d(width, 4 * width, config.kernel, padding=config.kernel // 2, bias=False)

    def states(self, x: Tensor, read: Tensor) -> Tensor:
        h = cell = x.new_zeros(len(x), self.width, x.shape[3])
        rows = []
        for gates in self.inward(x).unbind(2):
            h, cell = lstm(gates + self.across(h), cell, dim=1)
            rows.append(h)
        return torch.stack(rows, dim=2)

    # A line keeps of every pixel its x, h and c; `above` is K_ss ∗ h and c of the row above.

    def blank(self, like: Tensor, breadth: int) -> Line:
        return Line((), (), (like.new_zeros(len(like), 5 * self.width),) * breadth)

    def begin_row(self, line: Line, read: Tensor) -> Line:
        h, cell = torch.stack(line.columns, dim=2)[:, 2 * self.width :].chunk(2, dim=1)
        return Line((), (), torch.cat([self.across(h), cell], dim=1).unbind(2))

    def pixel(self, line: Line, x: Tensor, column: int) -> tuple[Tensor, Tensor]:
        across, cell = line.above[column].split((4 * self.width, self.width), dim=1)
        before = [kept[:, : 2 * self.width] for kept in line.columns[-self.inward.reach :]]
        h, cell = lstm(across + self.inward.pixel(before, x), cell, dim=1)
        return x + self.up.pixel((), h), torch.cat([x, h, cell], dim=1)
