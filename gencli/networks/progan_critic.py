"""Progressive Growing of GANs: the critic (Karras et al., 2017). arXiv:1710.10196

Offers: growing

The generator's mirror image (`networks/progan_generator.py`): from each side a 1×1 convolution of the picture, two
convolutions for each halving of the sides, and at the coarsest grid the batch's variation (`nn/minibatch_std.py`), a
convolution and two fully connected layers. Equalised rates and leaky relus, no normalisation. With classes it says a number
of each, and the one asked for is taken (as StyleGAN's does; the paper's has none).

20,726,785 parameters at 32 pixels, 23,087,249 at 1,024. `blur` puts the filter [1, 3, 3, 1] before halvings, as StyleGAN does;
without it the mean of four is taken. The variation over a group couples the items of a batch; `group 1` does without.

Raises GencliError for an input that is no image, and for sides that do not halve to a grid of 4 to 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._growing import BOX, Growth, at_grid
from gencli.networks._style import class_of, grids, widths
from gencli.nn.equalised import EqualConv2d, EqualLinear, leaky
from gencli.nn.fir import TAPS, Fir
from gencli.nn.minibatch_std import minibatch_std

HE = math.sqrt(2)


class ProganCritic(nn.Module, Component):
    """Images `(N, *x.shape)` to `(N, *out.shape)`."""

    role: ClassVar[str] = "growing"

    @dataclass(frozen=True)
    class Config:
        base: int = opt(16_384, "feature maps of a level times its side", low=4)
        most: int = opt(512, "feature maps of a level, at most", low=1)
        blur: bool = opt(False, "a smoother filter before halvings")
        group: int = opt(4, "items whose variation the critic sees together; 1 = none", low=1)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.couples = config.group > 1
        self.grids = grids("progan-critic", x)
        wide = widths(len(self.grids), config.base, config.most)
        label = class_of(cond, "progan-critic")
        self.told = label is not None
        self.pictures = nn.ModuleList(EqualConv2d(x.shape[0], width, 1, gain=HE) for width in wide)
        self.levels = nn.ModuleList(_Level(b, a) for a, b in pairwise(wide))
        self.conv = EqualConv2d(wide[0] + self.couples, wide[0], 3, gain=HE)
        self.dense = EqualLinear(wide[0] * self.grids[0][0] * self.grids[0][1], wide[0], gain=HE)
        self.out = out.shape
        self.last = EqualLinear(wide[0], out.size * ((label.vocab or 1) if label else 1))
        self.fir = Fir(TAPS if config.blur else BOX)

    def forward(self, x: Tensor, growth: Growth, **cond: Tensor) -> Tensor:
        h = self.shown(x, growth.level)
        if growth.share is not None:
            new = self.levels[growth.level](self.shown(x, growth.top), self.fir)
            h = h.lerp(new, growth.share)
        for level in reversed(self.levels[: growth.level]):
            h = level(h, self.fir)
        if self.couples:
            h = minibatch_std(h, self.config.group)
        said = self.last(leaky(self.dense(leaky(self.conv(h), 1).flatten(1)), 1)).unflatten(1, (-1, *self.out))
        return said[torch.arange(len(x), device=x.device), cond["label"]] if self.told else said[:, 0]

    def shown(self, x: Tensor, level: int) -> Tensor:
        """Feature maps of the picture at a level's sides."""
        return leaky(self.pictures[level](at_grid(x, self.grids[level])), 1)


class _Level(nn.Module):
    """Half the sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.same, self.halving = EqualConv2d(inputs, inputs, 3, gain=HE), EqualConv2d(inputs, outputs, 3, gain=HE)

    def forward(self, x: Tensor, fir: Fir) -> Tensor:
        assert self.halving.bias is not None, "it has one"
        h = fir.down(leaky(self.same(x), 1), self.halving.scaled)
        return leaky(h + self.halving.bias[:, None, None].to(h.dtype), 1)
