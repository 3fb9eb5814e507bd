"""U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger, Fischer & Brox, 2015). arXiv:1505.04597

Offers: map

A contracting path of unpadded 3×3 convolutions and 2×2 max pooling, an expanding path of 2×2 transposed convolutions, and
at each level the contracting path's features, cropped to size and concatenated. With the paper's five levels an image of
572×572 becomes a map of 388×388. (Denoisers use `unet`, its padded descendant.)

Input `(N, C, H, W)`, output `(N, C', H', W')` with H' < H. Errors: an image too small, or odd before a pooling.
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
from gencli.errors import GencliError


class OriginalUNet(nn.Module, Component):
    """The network of 2015."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(64, "feature maps of the first level; each level doubles them", low=1)
        levels: int = opt(5, "resolutions", low=2, high=8)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        made = tuple(output_side(side, config.levels) for side in x.shape[1:])
        assert made == out.shape[1:], f"an image of {x.shape[1:]} becomes a map of {made}, asked for {out.shape[1:]}"
        widths = [config.width * 2**level for level in range(config.levels)]
        self.down = nn.ModuleList(_pair(i, o) for i, o in zip([x.shape[0], *widths[:-1]], widths, strict=True))
        self.rise = nn.ModuleList(nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1]))
        self.up = nn.ModuleList(_pair(2 * w, w) for w in reversed(widths[:-1]))
        self.out = nn.Conv2d(config.width, out.shape[0], 1)

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for rise, block in zip(self.rise, self.up, strict=True):
            x = rise(x)
            x = block(torch.cat([cropped(skips.pop(), x), x], dim=1))
        return self.out(x)


def output_side(side: int, levels: int) -> int:
    """The side of the map that an image becomes."""
    asked = side
    for level in range(levels):
        if level:
            if side % 2:
                raise GencliError(
                    f"image side {asked} is odd ({side}) before pooling {level} of the original U-Net",
                    "choose a side such as 572, 188 with 4 levels, or the padded network `unet`",
                )
            side //= 2
        side -= 4
    side = side * 2 ** (levels - 1) - 4 * sum(2**level for level in range(levels - 1))
    if side < 1:
        raise GencliError(
            f"image side {asked} is too small for {levels} levels of the original U-Net", "use fewer levels"
        )
    return side


def cropped(skip: Tensor, like: Tensor) -> Tensor:
    """The centre of `skip` at the size of `like`."""
    top, left = ((a - b) // 2 for a, b in zip(skip.shape[2:], like.shape[2:], strict=True))
    return skip[:, :, top : top + like.shape[2], left : left + like.shape[3]]


def _pair(inputs: int, outputs: int) -> nn.Sequential:
    """Two unpadded convolutions."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.Conv2d(outputs, outputs, 3), nn.ReLU())
