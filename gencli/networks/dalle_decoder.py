"""Zero-Shot Text-to-Image Generation: the decoder of the discrete VAE (Ramesh et al., 2021). arXiv:2102.12092

Offers: map

    (N, K, h, w) → 1×1 conv → [blocks, twice the sides by repeating pixels] … → blocks → relu, 1×1 conv → (N, *out.shape)

`groups` times the blocks, the widest first. The defaults are the released ones: 43,829,766 parameters for K = 8,192 and two
numbers for each of RGB.

Raises GencliError for an output that is no image, and for sides that do not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._conv import check_image
from gencli.networks._dalle import DalleSettings, conv, path

KERNELS = (1, 3, 3, 3)


class DalleDecoder(nn.Module, Component):
    """`(N, K, h, w)` to `(N, *out.shape)`, out's sides `stride` times larger."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config(DalleSettings):
        first: int = opt(128, "feature maps that codes become at first", low=1)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.stride = 1 << (config.groups - 1)
        check_image("dalle-decoder", out, self.stride)
        if [*x.shape[1:]] != [side // self.stride for side in out.shape[1:]]:
            raise GencliError(
                f"dalle-decoder with {config.groups} groups cannot make {out.shape} from {x.shape}",
                "give encoder and decoder the same groups",
            )
        widths = [config.width << group for group in reversed(range(config.groups))]
        inner = path(config.first, widths, config.blocks, KERNELS, nn.Upsample(scale_factor=2, mode="nearest"))
        self.body = nn.Sequential(
            conv(x.shape[0], config.first, 1), *inner, nn.ReLU(), conv(widths[-1], out.shape[0], 1)
        )

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        return self.body(x)
