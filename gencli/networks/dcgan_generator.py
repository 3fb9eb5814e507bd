"""Unsupervised Representation Learning with DCGANs: the generator (Radford, Metz & Chintala, 2016). arXiv:1511.06434

Offers: map

A linear layer to the smallest maps, then `upsamples` 5×5 transposed convolutions of stride 2, each halving the feature maps,
with normalisation and relu between:

    z (N, d) → width·2ᵘ⁻¹ maps → … → width maps → x (N, C, H, W),   H and W divisible by 2ᵘ

Width 128, three upsamples and batch normalisation are the generator that WGAN-GP released for CIFAR-10: 5,179,907
parameters from 128 numbers. It starts as that one does. Ours: the output is not squashed, the model does that; the choice
of normalisation, because batch normalisation couples the items of a batch and samples with running statistics.

Raises GencliError for an output that is no image, and for sides that 2ᵘ does not divide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._conv import check_image
from gencli.networks._dcgan import KERNEL, PADDING, STRIDE, normal, start


class DcganGenerator(nn.Module, Component):
    """`(N, *x.shape)`, flattened, to images `(N, *out.shape)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "feature maps before the last layer, doubled in each layer before it", low=1)
        upsamples: int = opt(3, "doublings of the side", low=1, high=8)
        norm: Literal["batch", "layer", "none"] = opt("batch", "normalisation between layers")

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        stride = STRIDE**config.upsamples
        check_image("dcgan-generator", out, stride)
        channels, height, width = out.shape
        self.grid = (height // stride, width // stride)
        here = config.width * 2 ** (config.upsamples - 1)
        numbers = here * self.grid[0] * self.grid[1]
        layers: list[nn.Module] = [nn.Linear(x.size, numbers), *normal(config.norm, numbers, flat=True), nn.ReLU()]
        layers.append(nn.Unflatten(1, (here, *self.grid)))
        for step in reversed(range(config.upsamples)):
            wide = config.width * 2 ** (step - 1) if step else channels
            layers.append(nn.ConvTranspose2d(here, wide, KERNEL, STRIDE, PADDING, output_padding=1))
            layers += [*normal(config.norm, wide), nn.ReLU()] if step else []
            here = wide
        self.body = nn.Sequential(*layers)
        start(self)

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        return self.body(x.flatten(1))
