"""Analyzing and Improving the Image Quality of StyleGAN: the generator (Karras et al., 2019). arXiv:1912.04958

Offers: styled

    w = f(z, y);   a learned constant, then for each doubling of the sides two modulated 3×3 convolutions (`nn/modulated.py`)

    h ← leaky relu(conv(h; w) + strength · noise + b) √2,   x ← up(x) + toRGB(h; w)

Every convolution has its own w (`layers` of them; a level's last is told to toRGB together with the next level's first), and
normal noise `(H, W)` with a learned strength, 0 at the start. Resampling by [1, 3, 3, 1] (`nn/fir.py`). toRGB is a 1×1
modulated convolution without demodulation. The image is not squashed, or with `squash` by tanh: to give a ground of one value
that value exactly takes a linear output long, and the ground's grey is most of what tells its images from data.

With base 16,384 and 512 numbers of style these are the networks for 32 to 256 pixels of the released code (32,768: 512 and
1,024; `cifar`: 32 pixels with 2 layers of mapping). Ours: no clamping of activations, which the released code needs in
16 bits; a coarsest grid of 4 to 7 (`networks/_style.py`).

Raises GencliError for an output that is no image, and for sides that do not halve to such a grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._style import StyleMapping, StyleSettings, class_of, grids, widths
from gencli.nn.equalised import leaky
from gencli.nn.fir import Fir
from gencli.nn.modulated import ModulatedConv


class Stylegan2Generator(nn.Module, Component):
    """`style(z)`, then `forward(w, noise)`."""

    role: ClassVar[str] = "styled"

    @dataclass(frozen=True)
    class Config(StyleSettings):
        squash: bool = opt(False, "tanh at the end, for images of which much is as dark or as light as can be")

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.grids = grids("stylegan2-generator", out)
        wide = widths(len(self.grids), config.base, config.most)
        self.mapping = StyleMapping(x.size, config.style, config.mapping, class_of(cond, "stylegan2-generator"))
        self.constant = nn.Parameter(nn.init.normal_(torch.empty(wide[0], *self.grids[0])))
        self.levels = nn.ModuleList(
            _Level(config.style, here, there, out.shape[0], first=i == 0)
            for i, (here, there) in enumerate(zip([wide[0], *wide], wide, strict=False))
        )
        self.fir = Fir()
        self.layers = 2 * len(self.grids)
        self.spots = [h * w for i, (h, w) in enumerate(self.grids) for _ in range(1 if i == 0 else 2)]

    def style(self, z: Tensor, **cond: Tensor) -> Tensor:
        """w `(N, style)` from a latent."""
        return self.mapping(z.flatten(1), cond.get("label"))

    def forward(self, w: Tensor, noise: Tensor) -> Tensor:
        """Images from the styles of all layers `(N, layers, style)` and noise `(N, Σ H·W)`."""
        h, x = self.constant.expand(len(w), -1, -1, -1).to(w.dtype), None
        grains = noise.split(self.spots, 1)
        for i, (level, grid) in enumerate(zip(self.levels, self.grids, strict=True)):
            at = max(2 * i - 1, 0)
            h, x = level(
                h, x, w[:, at:], [grain.unflatten(1, (1, *grid)) for grain in grains[at : 2 * i + 1]], self.fir
            )
        assert x is not None, "there is at least one level"
        return x.tanh() if self.config.squash else x


class _Level(nn.Module):
    """The layers at one side: an upsampling convolution but for the first, a plain one, and what they add to the picture."""

    def __init__(self, style: int, inputs: int, width: int, channels: int, first: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList([] if first else [ModulatedConv(style, inputs, width, 3)])
        self.convs.append(ModulatedConv(style, width, width, 3))
        self.strength = nn.Parameter(torch.zeros(len(self.convs)))
        self.picture = ModulatedConv(style, width, channels, 1, demodulate=False)

    def forward(self, h: Tensor, x: Tensor | None, w: Tensor, noise: list[Tensor], fir: Fir) -> tuple[Tensor, Tensor]:
        for i, conv in enumerate(self.convs):
            up = len(self.convs) == 2 and i == 0
            h = leaky(conv(h, w[:, i], fir.up if up else same, noise[i] * self.strength[i]))
        shown = self.picture(h, w[:, len(self.convs)], same)
        return h, shown if x is None else fir.twice(x) + shown


def same(x: Tensor, weight: Tensor) -> Tensor:
    """A convolution that keeps the sides."""
    return F.conv2d(x, weight, padding=weight.shape[-1] // 2)
