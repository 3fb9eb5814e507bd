"""Zero-Shot Text-to-Image Generation: the encoder of the discrete VAE (Ramesh et al., 2021). arXiv:2102.12092

Offers: map

    x (N, C, H, W) → 7×7 conv → [blocks, the largest of each four pixels] … → blocks → relu, 1×1 conv → (N, K, H/s, W/s)

`groups` times the blocks, s = 2^(groups − 1). The defaults are the released ones: 53,786,240 parameters for RGB and K = 8,192.

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
from gencli.networks._dalle import DalleSettings, conv, path

KERNELS = (3, 3, 3, 1)


class DalleEncoder(nn.Module, Component):
    """`(N, C, H, W)` to `(N, *out.shape)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config(DalleSettings):
        """As the decoder's."""

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.stride = self.factor(config)
        check_image("dalle-encoder", x, self.stride)
        widths = [config.width << group for group in range(config.groups)]
        inner = path(config.width, widths, config.blocks, KERNELS, nn.MaxPool2d(2))
        self.body = nn.Sequential(
            conv(x.shape[0], config.width, 7), *inner, nn.ReLU(), conv(widths[-1], out.shape[0], 1)
        )

    @staticmethod
    def factor(config: Config) -> int:
        """How many times smaller the sides become."""
        return 1 << (config.groups - 1)

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        return self.body(x)
