"""Taming Transformers for High-Resolution Image Synthesis: the encoder (Esser, Rombach & Ommer, 2020). arXiv:2012.09841

Offers: map

    x (N, C, H, W) → conv → [blocks, half the sides] for each multiple but the last → blocks → block, attention, block
                   → norm, swish, conv to z → 1×1 conv → (N, D, H/s, W/s),   s = 2^(multiples − 1)

The defaults are ImageNet at 256×256, s = 16: with their decoder and 1,024 codes of 256 numbers 72,141,699 parameters. The
style `maskgit` makes MaskGIT's tokeniser, 54,515,587 together; it has no projection, z is not used (`_vqgan.py`).

Ours: norms with fewer groups in narrow networks, as in `adm`.

Raises GencliError for x that is no image, and for sides that s does not divide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gencli.config import Component
from gencli.core import Field
from gencli.networks._conv import check_image
from gencli.networks._resample_blocks import level_widths, norm
from gencli.networks._vqgan import EPS, Down, VqganSettings, middle, sides, stage


class VqganEncoder(nn.Module, Component):
    """`(N, C, H, W)` to `(N, *out.shape)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config(VqganSettings):
        """As the decoder's."""

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.stride = self.factor(config)
        check_image("vqgan-encoder", x, self.stride)
        released, style = config.style == "vqgan", config.style
        widths = level_widths("vqgan-encoder", config.width, config.mults)
        here, last = config.width, widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(x.shape[0], here, 3, padding=1, bias=released)]
        for level, (side, width) in enumerate(zip(sides(x.shape[1], config.mults), widths, strict=True)):
            layers += stage(here, width, config.blocks, side in config.attention, style)
            here = width
            if level < len(widths) - 1:
                layers.append(Down(here) if released else nn.AvgPool2d(2))
        layers += [*middle(last, style), norm(last, EPS), nn.SiLU()]
        if released:
            layers += [nn.Conv2d(last, config.z, 3, padding=1), nn.Conv2d(config.z, out.shape[0], 1)]
        else:
            layers.append(nn.Conv2d(last, out.shape[0], 1))
        self.body = nn.Sequential(*layers)

    @staticmethod
    def factor(config: Config) -> int:
        """How many times smaller the sides become."""
        return 1 << (len(config.mults) - 1)

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        return self.body(x)
