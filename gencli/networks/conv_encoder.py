"""Neural Discrete Representation Learning: the encoder (van den Oord, Vinyals & Kavukcuoglu, 2017). arXiv:1711.00937

Offers: map

`downsamples` 4×4 convolutions of stride 2 (half the width, then the width), a 3×3 convolution, a residual stack, and a
1×1 projection to the channels that the model asks for. Two downsamples, width 128 and two residual blocks of 32 are the
released CIFAR-10 network: 364,160 parameters and 8,256 in the projection to 64. A model that asks for a vector gets a linear
layer over all places instead of the projection. Ours: a class label is seen as more channels of the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._conv import PLANES, LabelPlanes, ResidualStack, check_image, widths
from gencli.nn.embed import label_field


class ConvEncoder(nn.Module, Component):
    """`(N, C, H, W)` to `(N, *out.shape)`: a grid with sides `stride` times smaller, or a vector."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "feature maps", low=2)
        residual_width: int = opt(32, "feature maps inside a residual block", low=1)
        residual_blocks: int = opt(2, "residual blocks", low=0)
        downsamples: int = opt(2, "halvings of the side", low=1, high=6)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.stride = self.factor(config)
        check_image("conv-encoder", x, self.stride)
        sides = tuple(side // self.stride for side in x.shape[1:])
        if len(out.shape) != 1 and tuple(out.shape[1:]) != sides:
            raise GencliError(
                f"conv-encoder with downsamples {config.downsamples} cannot make {out.shape} from {x.shape}",
                "change downsamples",
            )
        label = label_field(cond or {}, "conv-encoder")
        self.label = LabelPlanes(label, *x.shape[1:]) if label else None
        layers: list[nn.Module] = []
        here = x.shape[0] + (PLANES if label else 0)
        for width in widths(config.width, config.downsamples):
            layers += [nn.Conv2d(here, width, 4, stride=2, padding=1), nn.ReLU()]
            here = width
        layers += [nn.Conv2d(here, config.width, 3, padding=1), nn.ReLU()]
        self.body = nn.Sequential(*layers, ResidualStack(config.width, config.residual_width, config.residual_blocks))
        self.project: nn.Module
        if len(out.shape) == 1:
            self.project = nn.Sequential(nn.Flatten(), nn.Linear(config.width * math.prod(sides), out.shape[0]))
        else:
            self.project = nn.Conv2d(config.width, out.shape[0], 1)

    @staticmethod
    def factor(config: Config) -> int:
        """How many times smaller the sides become."""
        return 1 << config.downsamples

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        if self.label is not None:
            x = self.label.beside(x, cond["label"])
        return self.project(self.body(x))
