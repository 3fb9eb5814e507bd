"""A Style-Based Generator Architecture for GANs: the generator (Karras et al., 2018). arXiv:1812.04948

Offers: styled

    w = f(z, y);   a learned constant, then two 3×3 convolutions for each doubling of the sides; after each of these layers

    h ← leaky relu(h + strength · noise + b),   h ← y_s (h − mean) / deviation + y_b,   (y_s, y_b) = A w + (1, 0)

with noise `(H, W)`, a learned strength for each channel, and mean and deviation over an item's channel (adaptive instance
normalisation). From each side a 1×1 convolution to the picture; how far the network has grown is told in each call
(`networks/_growing.py`). The image is not squashed.

base 16,384, 512 numbers of style and 8 layers of mapping have 26,219,627 parameters at 1,024 pixels, the paper's 26.2 million.
Ours: doubling, convolution and blur are one filter [1, 3, 3, 1] and one convolution (`nn/fir.py`), which differs from the
released order in the outermost pixels; z and the class are normalised each for itself.

Raises GencliError for an output that is no image, and for sides that do not halve to a grid of 4 to 7.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gencli.config import Component
from gencli.core import Field
from gencli.networks._growing import Growth, in_squares
from gencli.networks._style import StyleMapping, StyleSettings, class_of, grids, widths
from gencli.nn.equalised import EPSILON, EqualConv2d, EqualLinear, leaky
from gencli.nn.film import film
from gencli.nn.fir import Fir

HE = math.sqrt(2)


class StyleganGenerator(nn.Module, Component):
    """`style(z)`, then `forward(w, noise, growth)`."""

    role: ClassVar[str] = "styled"

    @dataclass(frozen=True)
    class Config(StyleSettings):
        """Those of all of them."""

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.grids = grids("stylegan-generator", out)
        wide = widths(len(self.grids), config.base, config.most)
        self.mapping = StyleMapping(x.size, config.style, config.mapping, class_of(cond, "stylegan-generator"))
        self.constant = nn.Parameter(torch.ones(wide[0], *self.grids[0]))
        self.levels = nn.ModuleList(_Level(config.style, a, b) for a, b in zip([0, *wide[:-1]], wide, strict=True))
        self.pictures = nn.ModuleList(EqualConv2d(width, out.shape[0], 1) for width in wide)
        self.fir = Fir()
        self.layers = 2 * len(self.grids)
        self.spots = [h * w for h, w in self.grids for _ in range(2)]

    def style(self, z: Tensor, **cond: Tensor) -> Tensor:
        """w `(N, style)` from a latent."""
        return self.mapping(z.flatten(1), cond.get("label"))

    def forward(self, w: Tensor, noise: Tensor, growth: Growth) -> Tensor:
        """Images from the styles of all layers `(N, layers, style)` and noise `(N, Σ H·W)`."""
        h = self.constant.expand(len(w), -1, -1, -1).to(w.dtype)
        grains, made = noise.split(self.spots, 1), []
        for i, level in enumerate(self.levels[: growth.top + 1]):
            parts = [grain.unflatten(1, (1, *self.grids[i])) for grain in grains[2 * i : 2 * i + 2]]
            h = level(h, w[:, 2 * i : 2 * i + 2], parts, self.fir)
            if i >= growth.level:
                made.append(self.pictures[i](h))
        if growth.share is not None:
            made = [in_squares(made[0], self.grids[growth.top]).lerp(made[1], growth.share)]
        return in_squares(made[0], self.grids[-1])


class _Level(nn.Module):
    """The two layers at one side: doubling and convolution, of which the coarsest has the constant instead of the first."""

    def __init__(self, style: int, inputs: int, width: int) -> None:
        super().__init__()
        self.doubling = EqualConv2d(inputs, width, 3, bias=False, gain=HE) if inputs else None
        self.same = EqualConv2d(width, width, 3, bias=False, gain=HE)
        self.after = nn.ModuleList(After(style, width) for _ in range(2))

    def forward(self, h: Tensor, w: Tensor, noise: list[Tensor], fir: Fir) -> Tensor:
        h = h if self.doubling is None else fir.up(h, self.doubling.scaled)
        h = self.after[0](h, w[:, 0], noise[0])
        return self.after[1](self.same(h), w[:, 1], noise[1])


class After(nn.Module):
    """Noise, bias, relu, and the style: mean and deviation of each channel."""

    def __init__(self, style: int, width: int) -> None:
        super().__init__()
        self.strength, self.bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.affine = EqualLinear(style, 2 * width)

    def forward(self, h: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        h = leaky(h + (noise * self.strength[:, None, None] + self.bias[:, None, None]).to(h.dtype), 1)
        scale, shift = self.affine(w).to(h.dtype).chunk(2, 1)
        return adapted(h, scale + 1, shift)


def adapted(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """h with these deviations and means `(N, C)` over each item's channels."""
    wide = h if h.dtype == torch.float64 else h.float()
    var, mean = torch.var_mean(wide, (2, 3), correction=0, keepdim=True)
    return film((wide - mean).to(h.dtype) * (var + EPSILON).rsqrt().to(h.dtype), scale, shift)
