"""Pixel Recurrent Neural Networks: the PixelCNN (van den Oord, Kalchbrenner & Kavukcuoglu, 2016). arXiv:1601.06759

Offers: sequence

A 7×7 convolution with mask A, residual blocks relu-1×1(h)-relu-3×3(h)-relu-1×1(2h) with mask B, two 1×1 layers to the
logits. The masks leave the classical blind spot: a wedge of earlier pixels to the upper right is never seen. Red is seen
by green, red and green by blue.

Tokens `(N, *x.shape)` with x `(C, H, W)` pixels or `(h, w)` codes; logits `(N, *x.shape, V)`. Ours: a masked convolution
is stored as its two visible parts. Labels and vectors are not used: the method is unconditional. A condition that is a grid
of codes or an image is added to the first layer's features (as a map, `networks/_causal.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._causal import CausalImageNet, Conditions, Left, Line, Masked, Tokens, is_map


class PixelCNN(CausalImageNet, Component):
    """The stack of masked convolutions."""

    role: ClassVar[str] = "sequence"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(64, "feature maps h inside a block; 2h between blocks", low=1)
        blocks: int = opt(12, "residual blocks", low=0)
        first: Literal[3, 5, 7, 9] = opt(7, "kernel of the first layer")
        kernel: Literal[3, 5, 7] = opt(3, "kernel of the blocks")
        head: int = opt(128, "feature maps of the layer before the logits", low=1)
        condition_blocks: int = opt(2, "residual blocks over a condition that is a grid of codes or an image", low=0)

    def __init__(self, config: Config, x: Field, vocab: int, cond: Mapping[str, Field] | None = None) -> None:
        super().__init__(x, vocab, "pixelcnn")
        self.config = config
        width, channels = config.width, self.channels
        self.read = Tokens(x, vocab, width)
        self.first = Masked(channels * self.read.features, 2 * width, config.first, True, channels)
        self.blocks = nn.ModuleList(_Block(width, config.kernel, channels) for _ in range(config.blocks))
        self.head = self.make_head(2 * width, config.head)
        maps = {key: field for key, field in (cond or {}).items() if is_map(field)}
        self.cond = Conditions(maps, 2 * width, "pixelcnn", (self.height, self.breadth), config.condition_blocks)

    def given(self, n: int, cond: Mapping[str, Tensor], like: Tensor) -> Tensor:
        return self.cond(n, cond, like)

    def features(self, x: Tensor, h: Tensor) -> Tensor:
        x = self.first(x)
        x = x + h if h.ndim == x.ndim else x
        for block in self.stack:
            x = block(x)
        return x

    @property
    def stack(self) -> list[_Block]:
        """The residual blocks."""
        return cast("list[_Block]", list(self.blocks))

    def begin_row(self, lines: tuple[Line, ...], h: Tensor) -> tuple[Line, ...]:
        layers = [self.first, *(block.conv for block in self.stack)]
        if not lines:
            zeros = [h.new_zeros(len(h), layer.outputs) for layer in layers]
            lines = tuple(Line((), (), (zero,) * self.breadth) for zero in zeros)
        else:
            lines = tuple(layer.begin_row(line) for layer, line in zip(layers, lines, strict=True))
        if h.ndim == 2:
            return lines
        first = tuple(a + b for a, b in zip(lines[0].above, h.unbind(2), strict=True))
        return (lines[0]._replace(above=first), *lines[1:])

    def pixel(self, lines: tuple[Line, ...], x: Tensor, column: int) -> tuple[Tensor, list[Tensor]]:
        x = self.first.pixel(lines[0], x, column)
        inputs = []
        for block, line in zip(self.stack, lines[1:], strict=True):
            x, inner = block.pixel(line, x, column)
            inputs.append(inner)
        return x, inputs


class _Block(nn.Module):
    """A residual block; only its middle convolution looks around."""

    def __init__(self, width: int, kernel: int, channels: int) -> None:
        super().__init__()
        self.down = Left(2 * width, width, 1, False, channels)
        self.conv = Masked(width, width, kernel, False, channels)
        self.up = Left(width, 2 * width, 1, False, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.up(self.conv(self.down(x.relu()).relu()).relu())

    def pixel(self, line: Line, x: Tensor, column: int) -> tuple[Tensor, Tensor]:
        inner = self.down.pixel((), x.relu()).relu()
        return x + self.up.pixel((), self.conv.pixel(line, inner, column).relu()), inner
