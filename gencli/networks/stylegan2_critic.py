"""Analyzing and Improving the Image Quality of StyleGAN: the discriminator (Karras et al., 2019). arXiv:1912.04958

Offers: map

A 1×1 convolution from the image, then for each halving of the sides two 3×3 convolutions, the second behind a low-pass filter
(`nn/fir.py`), beside it a linear shortcut:

    h ← (leaky relu(down(leaky relu(conv(h)))) + skip(h)) / √2

and at the coarsest grid the batch's variation (`nn/minibatch_std.py`), a convolution, and two fully connected layers. With a
class y the last has as many numbers as a mapping c(y) of 8 layers, and the score is ⟨out, c(y)⟩ / √numbers.

`residual = false` leaves the shortcuts out, as the released code does on CIFAR-10. Counts: `networks/stylegan2_generator.py`.
The variation over a group couples the items of a batch; `group 1` does without.

Raises GencliError for an input that is no image, and for sides that do not halve to a grid of 4 to 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._style import StyleMapping, class_of, grids, widths
from gencli.nn.equalised import EqualConv2d, EqualLinear, leaky
from gencli.nn.fir import Fir
from gencli.nn.minibatch_std import minibatch_std


class Stylegan2Critic(nn.Module, Component):
    """Images `(N, *x.shape)` to `(N, *out.shape)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        base: int = opt(16_384, "feature maps of a level times its side", low=4)
        most: int = opt(512, "feature maps of a level, at most", low=1)
        residual: bool = opt(True, "a shortcut beside the convolutions of each level")
        group: int = opt(4, "items whose variation the critic sees together; 1 = none", low=1)
        mapping: int = opt(8, "layers of the mapping of a class", low=1)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.couples = config.group > 1
        sides = grids("stylegan2-critic", x)
        wide = widths(len(sides), config.base, config.most)
        label = class_of(cond, "stylegan2-critic")
        self.out, last = out.shape, wide[0]
        self.mapping = StyleMapping(0, last, config.mapping, label) if label else None
        self.first = EqualConv2d(x.shape[0], wide[-1], 1)
        self.levels = nn.ModuleList(
            _Level(here, there, config.residual)
            for here, there in zip(reversed(wide[1:]), reversed(wide[:-1]), strict=True)
        )
        self.conv = EqualConv2d(last + self.couples, last, 3)
        self.dense = EqualLinear(last * sides[0][0] * sides[0][1], last)
        self.last = EqualLinear(last, (last if label else 1) * out.size)
        self.fir = Fir()

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        h = leaky(self.first(x))
        for level in self.levels:
            h = level(h, self.fir)
        if self.couples:
            h = minibatch_std(h, self.config.group)
        said = self.last(leaky(self.dense(leaky(self.conv(h)).flatten(1))))
        if self.mapping is not None:
            row = self.mapping(None, cond["label"]).to(said.dtype)  # (N, numbers)
            said = (said.unflatten(1, (-1, row.shape[1])) * row[:, None]).sum(2) / math.sqrt(row.shape[1])
        return said.unflatten(1, self.out)


class _Level(nn.Module):
    """Half the sides."""

    def __init__(self, inputs: int, outputs: int, residual: bool) -> None:
        super().__init__()
        self.same, self.halving = EqualConv2d(inputs, inputs, 3), EqualConv2d(inputs, outputs, 3)
        self.skip = EqualConv2d(inputs, outputs, 1, bias=False) if residual else None

    def forward(self, x: Tensor, fir: Fir) -> Tensor:
        assert self.halving.bias is not None, "it has one"
        h = fir.down(leaky(self.same(x)), self.halving.scaled)
        h = leaky(h + self.halving.bias[:, None, None].to(h.dtype))
        return h if self.skip is None else (h + fir.down(x, self.skip.scaled)) / math.sqrt(2)
