"""Neural Discrete Representation Learning: the decoder (van den Oord, Vinyals & Kavukcuoglu, 2017). arXiv:1711.00937

Offers: map

A 3×3 convolution, a residual stack, and `downsamples` 4×4 transposed convolutions of stride 2 with relus between. Two
downsamples, width 128 and two residual blocks of 32 are the released CIFAR-10 network: 290,307 parameters. A vector
first becomes a grid of `width` feature maps by a linear layer and a relu. Ours: a class label is seen as more channels of the
grid.
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


class ConvDecoder(nn.Module, Component):
    """`(N, D, h, w)`, or `(N, D)`, to `(N, *out.shape)`, out's sides `stride` times larger."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "feature maps", low=2)
        residual_width: int = opt(32, "feature maps inside a residual block", low=1)
        residual_blocks: int = opt(2, "residual blocks", low=0)
        downsamples: int = opt(2, "doublings of the side, as many as the encoder's halvings", low=1, high=6)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.stride = 1 << config.downsamples
        check_image("conv-decoder", out, self.stride)
        grid = [side // self.stride for side in out.shape[1:]]
        if len(x.shape) != 1 and [*x.shape[1:]] != grid:
            raise GencliError(
                f"conv-decoder with downsamples {config.downsamples} cannot make {out.shape} from {x.shape}",
                "give encoder and decoder the same downsamples",
            )
        here = x.shape[0]
        self.lift: nn.Module = nn.Identity()
        if len(x.shape) == 1:
            linear = nn.Linear(x.size, config.width * math.prod(grid))
            self.lift = nn.Sequential(linear, nn.Unflatten(1, (config.width, *grid)), nn.ReLU())
            here = config.width
        label = label_field(cond or {}, "conv-decoder")
        self.label = LabelPlanes(label, *grid) if label else None
        here += PLANES if label else 0
        layers: list[nn.Module] = [nn.Conv2d(here, config.width, 3, padding=1)]
        layers.append(ResidualStack(config.width, config.residual_width, config.residual_blocks))
        here = config.width
        for width in [*reversed(widths(config.width, config.downsamples)[:-1]), out.shape[0]]:
            layers += [nn.ConvTranspose2d(here, width, 4, stride=2, padding=1), nn.ReLU()]
            here = width
        self.body = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        h = self.lift(x)
        return self.body(h if self.label is None else self.label.beside(h, cond["label"]))
