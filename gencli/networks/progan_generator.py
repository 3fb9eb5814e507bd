"""Progressive Growing of GANs: the generator (Karras et al., 2017). arXiv:1710.10196

Offers: growing

From a latent of root mean square 1, a linear layer and a 3×3 convolution at the coarsest grid, then two convolutions for
each doubling of the sides, all with equalised rates, leaky relus and pixel norm (`nn/equalised.py`); from each side a 1×1
convolution to the picture. How far it has grown is told in each call (`networks/_growing.py`). A class stands beside the latent
as zeros and a one. The image is not squashed.

base 16,384 and at most 512 feature maps are the released code's: 20,719,628 parameters at 32 pixels and 23,079,115 at 1,024.

Raises GencliError for an output that is no image, and for sides that do not halve to a grid of 4 to 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._growing import BOX, Growth, in_squares
from gencli.networks._style import class_of, grids, widths
from gencli.nn.equalised import EqualConv2d, EqualLinear, leaky, pixel_norm
from gencli.nn.fir import Fir

HE = math.sqrt(2)


class ProganGenerator(nn.Module, Component):
    """`(N, *x.shape)`, flattened, to images `(N, *out.shape)`."""

    role: ClassVar[str] = "growing"

    @dataclass(frozen=True)
    class Config:
        base: int = opt(16_384, "feature maps of a level times its side", low=4)
        most: int = opt(512, "feature maps of a level, at most", low=1)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.grids = grids("progan-generator", out)
        wide = widths(len(self.grids), config.base, config.most)
        label = class_of(cond, "progan-generator")
        self.classes = (label.vocab or 0) if label else 0
        numbers = wide[0] * self.grids[0][0] * self.grids[0][1]
        self.dense = EqualLinear(x.size + self.classes, numbers, bias=None, gain=HE / 4)
        self.bias = nn.Parameter(torch.zeros(wide[0]))
        self.conv = EqualConv2d(wide[0], wide[0], 3, gain=HE)
        self.levels = nn.ModuleList(_Level(a, b) for a, b in pairwise(wide))
        self.pictures = nn.ModuleList(EqualConv2d(width, out.shape[0], 1) for width in wide)
        self.fir = Fir(BOX)

    def forward(self, x: Tensor, growth: Growth, **cond: Tensor) -> Tensor:
        z = x.flatten(1)
        if self.classes:
            z = torch.cat([z, F.one_hot(cond["label"], self.classes).to(z)], 1)
        h = self.dense(pixel_norm(z)).unflatten(1, (-1, *self.grids[0]))
        h = pixel_norm(leaky(h + self.bias[:, None, None].to(h.dtype), 1))
        h = pixel_norm(leaky(self.conv(h), 1))
        for level in self.levels[: growth.level]:
            h = level(h, self.fir)
        made = self.pictures[growth.level](h)
        if growth.share is not None:
            new = self.pictures[growth.top](self.levels[growth.level](h, self.fir))
            made = in_squares(made, self.grids[growth.top]).lerp(new, growth.share)
        return in_squares(made, self.grids[-1])


class _Level(nn.Module):
    """Twice the sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.doubling, self.same = EqualConv2d(inputs, outputs, 3, gain=HE), EqualConv2d(outputs, outputs, 3, gain=HE)

    def forward(self, x: Tensor, fir: Fir) -> Tensor:
        assert self.doubling.bias is not None, "it has one"
        h = fir.up(x, self.doubling.scaled) + self.doubling.bias[:, None, None].to(x.dtype)
        return pixel_norm(leaky(self.same(pixel_norm(leaky(h, 1))), 1))
