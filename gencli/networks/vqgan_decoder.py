"""Taming Transformers for High-Resolution Image Synthesis: the decoder (Esser, Rombach & Ommer, 2020). arXiv:2012.09841

Offers: map

    (N, D, h, w) → 1×1 conv to z → conv → block, attention, block → [blocks, twice the sides, conv] for each multiple but the
                   first, from the last on → blocks → norm, swish, conv → (N, C, s h, s w),   s = 2^(multiples − 1)

Sides are doubled by repeating pixels. A level has one block more than the encoder's; the style `maskgit` as many, and no 1×1
convolution. Defaults and counts: `vqgan-encoder`.

Raises GencliError for an output that is no image, and for sides that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gencli.config import Component
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._conv import check_image
from gencli.networks._resample_blocks import level_widths, norm
from gencli.networks._vqgan import EPS, VqganSettings, middle, sides, stage
from gencli.networks.unet import upsampled


class VqganDecoder(nn.Module, Component):
    """`(N, D, h, w)` to `(N, *out.shape)`, out's sides `stride` times larger."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config(VqganSettings):
        """As the encoder's."""

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.stride = 1 << (len(config.mults) - 1)
        check_image("vqgan-decoder", out, self.stride)
        if [*x.shape[1:]] != [side // self.stride for side in out.shape[1:]]:
            raise GencliError(
                f"vqgan-decoder with {len(config.mults)} multiples cannot make {out.shape} from {x.shape}",
                "give encoder and decoder the same mults",
            )
        released, style = config.style == "vqgan", config.style
        widths = level_widths("vqgan-decoder", config.width, config.mults)
        here, last = widths[-1], widths[-1]
        layers: list[nn.Module] = [nn.Conv2d(x.shape[0], config.z, 1)] if released else []
        layers.append(nn.Conv2d(config.z if released else x.shape[0], last, 3, padding=1))
        layers += middle(last, style)
        for level, side in reversed([*enumerate(sides(out.shape[1], config.mults))]):
            layers += stage(here, widths[level], config.blocks + released, side in config.attention, style)
            here = widths[level]
            if level:
                layers.append(_Up(here))
        layers += [norm(here, EPS), nn.SiLU(), nn.Conv2d(here, out.shape[0], 3, padding=1)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        return self.body(x)


class _Up(nn.Module):
    """Twice the sides by repeating pixels, then a 3×3 convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return upsampled(x, self.conv)
