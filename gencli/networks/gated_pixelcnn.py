"""Conditional Image Generation with PixelCNN Decoders: the network (van den Oord et al., 2016). arXiv:1606.05328

Offers: sequence

    y = tanh(W_f ∗ x + V_f h) ⊙ σ(W_g ∗ x + V_g h)

Each layer has a vertical stack, which sees all rows above, and a horizontal one, which sees the pixels to the left and,
through a 1×1 convolution, the vertical stack before its gate: no blind spot. The horizontal stack has residual
connections from the second layer on. h is the sum of a learned vector for each condition (class labels with a null row for
unconditional use; plain vectors); with a grid of codes or an image among them, such as the codes above in a hierarchy, h is
a map of x's sides and V a 1×1 convolution.

Ours: optional dropout of gated features, which small data need; a residual stack makes the map (`networks/_causal.py`).

Tokens `(N, *x.shape)` with x `(C, H, W)` pixels or `(h, w)` codes; logits `(N, *x.shape, V)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._causal import Above, CausalImageNet, Conditions, Left, Line, Tokens, initialise, told


class GatedPixelCNN(CausalImageNet, Component):
    """Two stacks of gated convolutions."""

    role: ClassVar[str] = "sequence"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(64, "feature maps of each stack", low=1)
        layers: int = opt(8, "layers, the first included", low=1)
        first: Literal[3, 5, 7, 9] = opt(7, "kernel of the first layer")
        kernel: Literal[3, 5, 7] = opt(5, "kernel of the other layers")
        dropout: float = opt(0.0, "share of gated features dropped in training", low=0, high=0.9)
        head: int = opt(128, "feature maps of the layer before the logits", low=1)
        condition_blocks: int = opt(2, "residual blocks over a condition that is a grid of codes or an image", low=0)

    def __init__(self, config: Config, x: Field, vocab: int, cond: Mapping[str, Field] | None = None) -> None:
        super().__init__(x, vocab, "gated-pixelcnn")
        self.config = config
        width, channels = config.width, self.channels
        self.read = Tokens(x, vocab, width)
        sides = (self.height, self.breadth)
        self.cond = Conditions(cond or {}, width, "gated-pixelcnn", sides, config.condition_blocks)
        self.layers = nn.ModuleList(
            _Layer(
                width if i else channels * self.read.features,
                width,
                config.kernel if i else config.first,
                first=i == 0,
                last=i == config.layers - 1,
                channels=channels,
                given=self.cond.width,
                dropout=config.dropout,
            )
            for i in range(config.layers)
        )
        self.head = self.make_head(width, config.head)

    def given(self, n: int, cond: Mapping[str, Tensor], like: Tensor) -> Tensor:
        return self.cond(n, cond, like)

    def features(self, x: Tensor, h: Tensor) -> Tensor:
        vertical = horizontal = x
        for layer in self.stack:
            vertical, horizontal = layer(vertical, horizontal, h)
        return horizontal

    @property
    def stack(self) -> list[_Layer]:
        """The layers."""
        return cast("list[_Layer]", list(self.layers))

    def begin_row(self, lines: tuple[Line, ...], h: Tensor) -> tuple[Line, ...]:
        blank = h.new_zeros(len(h), self.channels * self.read.features, self.breadth)
        lines = lines or (Line((blank,), (), ()), *[Line((), (), ())] * (len(self.layers) - 1))
        input_row = torch.stack(lines[0].columns, dim=2) if lines[0].columns else blank
        vertical, made = input_row, []
        for layer, line in zip(self.stack, lines, strict=True):
            rows = (*line.rows, vertical)[-layer.vertical.reach - layer.vertical.own :]
            vertical, above = layer.begin_row(rows, h)
            made.append(Line(rows, (), above.unbind(2)))
        return tuple(made)

    def pixel(self, lines: tuple[Line, ...], x: Tensor, column: int) -> tuple[Tensor, list[Tensor]]:
        inputs = []
        for layer, line in zip(self.stack, lines, strict=True):
            inputs.append(x)
            x = layer.pixel(line, x, column)
        return x, inputs[1:]


class _Layer(nn.Module):
    """One layer of both stacks."""

    def __init__(
        self,
        inputs: int,
        width: int,
        kernel: int,
        *,
        first: bool,
        last: bool,
        channels: int,
        given: int,
        dropout: float,
    ) -> None:
        super().__init__()
        reach, double = kernel // 2, 2 * width
        self.residual = not first
        self.vertical = Above(inputs, double, kernel, own=not first, bias=True, fan=inputs * kernel * (reach + 1))
        self.link = nn.Conv2d(double, double, 1, bias=False)
        initialise(self.link, double)
        self.horizontal = Left(inputs, double, kernel, first, channels, gates=2, fan=inputs * (reach + 1))
        self.drop = nn.Dropout(dropout)
        self.out = Left(width, width, 1, False, channels)
        self.given_horizontal = nn.Linear(given, double, bias=False) if given else None
        # the last layer's vertical gate feeds nothing
        self.given_vertical = nn.Linear(given, double, bias=False) if given and not last else None

    def forward(self, vertical: Tensor, horizontal: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        tall = self.vertical(vertical)  # (N, 2 width, H, W)
        wide = self.link(tall) + self.horizontal(horizontal)
        if self.given_horizontal is not None:
            wide = wide + told(self.given_horizontal, h, wide)
        made = self.out(self.drop(gate(wide)))
        if self.given_vertical is not None:
            tall = tall + told(self.given_vertical, h, tall)
        return self.drop(gate(tall)), horizontal + made if self.residual else made

    def begin_row(self, rows: tuple[Tensor, ...], h: Tensor) -> tuple[Tensor, Tensor]:
        """This row of the vertical stack `(N, width, W)`, and what it gives to the horizontal one `(N, 2 width, W)`."""
        tall = self.vertical.row(rows)
        above = self.link(tall[:, :, None]).squeeze(2)
        if self.given_horizontal is not None:
            above = above + told(self.given_horizontal, h, above)
        if self.given_vertical is not None:
            tall = tall + told(self.given_vertical, h, tall)
        return gate(tall), above

    def pixel(self, line: Line, x: Tensor, column: int) -> Tensor:
        """The horizontal stack at one pixel."""
        made = self.out.pixel((), gate(line.above[column] + self.horizontal.pixel(line.columns, x)))
        return x + made if self.residual else made


def gate(x: Tensor) -> Tensor:
    """tanh of the first half of the features times σ of the second."""
    f, g = x.chunk(2, dim=1)
    return f.tanh() * g.sigmoid()
