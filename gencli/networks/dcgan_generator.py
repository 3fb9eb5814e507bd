"""Unsupervised Representation Learning with DCGANs: the generator (Radford, Metz & Chintala, 2016). arXiv:1511.06434

Offers: map

A linear layer to the smallest maps, then `upsamples` transposed convolutions of stride 2, each halving the feature maps, with
normalisation and relu between:

    z (N, d) → width·2ᵘ⁻¹ maps → … → width maps → x (N, C, H, W),   H and W divisible by 2ᵘ

Width 128, three upsamples and batch normalisation are the generator that WGAN-GP released for CIFAR-10: 5,179,907
parameters from 128 numbers, and start as that one does. A kernel of 4 is DCGAN in torch, without biases: width 64 and four
upsamples from 100 numbers have 3,576,704. A class adds a learned row to what the linear layer makes, as if it stood beside z.
Ours: the output is not squashed, the model does that; the choice of normalisation, because batch normalisation couples the
items of a batch and samples with running statistics.

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
from gencli.networks._dcgan import STRIDE, normal, padding, start, through, told


class DcganGenerator(nn.Module, Component):
    """`(N, *x.shape)`, flattened, to images `(N, *out.shape)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "feature maps before the last layer, doubled in each layer before it", low=1)
        upsamples: int = opt(3, "doublings of the side", low=1, high=8)
        norm: Literal["batch", "layer", "none"] = opt("batch", "normalisation between layers")
        kernel: Literal[4, 5] = opt(5, "side of the filters; 4 = as DCGAN in torch, without biases")

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        stride = STRIDE**config.upsamples
        check_image("dcgan-generator", out, stride)
        channels, height, width = out.shape
        self.grid = (height // stride, width // stride)
        here = config.width * 2 ** (config.upsamples - 1)
        numbers, by_number = here * self.grid[0] * self.grid[1], config.kernel == 5
        fold = nn.Unflatten(1, (here, *self.grid))
        first = told(nn.Linear(x.size, numbers, bias=by_number), cond, numbers, "dcgan-generator")
        norms = normal(config.norm, numbers if by_number else here, flat=by_number)
        layers: list[nn.Module] = [first, *([*norms, nn.ReLU(), fold] if by_number else [fold, *norms, nn.ReLU()])]
        for step in reversed(range(config.upsamples)):
            wide = config.width * 2 ** (step - 1) if step else channels
            pad = padding(config.kernel)
            layers.append(nn.ConvTranspose2d(here, wide, config.kernel, STRIDE, pad, int(by_number), bias=by_number))
            layers += [*normal(config.norm, wide), nn.ReLU()] if step else []
            here = wide
        self.body = nn.Sequential(*layers)
        start(self, config.kernel, config.norm)

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        return through(self.body, x.flatten(1), cond)
