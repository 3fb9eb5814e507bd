"""Unsupervised Representation Learning with DCGANs: the critic (Radford, Metz & Chintala, 2016). arXiv:1511.06434

Offers: map

`downsamples` convolutions of stride 2 with leaky relus of slope 0.2, the first to `width` feature maps and each next to twice
as many, then a linear layer from all numbers that are left:

    x (N, C, H, W) → width maps → … → width·2ᵈ⁻¹ maps → (N, *out.shape),   H and W divisible by 2ᵈ

Width 128 and three downsamples are the critic that WGAN-GP released for CIFAR-10: 4,114,689 parameters, and start as that one
does. A kernel of 4 is DCGAN in torch, without biases: width 64, four downsamples and batch normalisation have 2,765,568 for
colour images. Batch normalisation couples items, which a penalty on a critic's gradient must not have; `spectral` divides
weights by their greatest singular value (arXiv:1802.05957). A class adds a learned row to the first feature maps.

Raises GencliError for an input that is no image, and for sides that 2ᵈ does not divide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._conv import check_image
from gencli.networks._dcgan import STRIDE, Norm, normal, padding, start, through, told

SLOPE = 0.2


class DcganCritic(nn.Module, Component):
    """Images `(N, *x.shape)` to `(N, *out.shape)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "feature maps after the first layer, doubled in each layer after it", low=1)
        downsamples: int = opt(3, "halvings of the side", low=1, high=8)
        norm: Norm = opt("none", "normalisation after every convolution but the first; spectral of all weights")
        kernel: Literal[4, 5] = opt(5, "side of the filters; 4 = as DCGAN in torch, without biases")

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        stride = STRIDE**config.downsamples
        check_image("dcgan-critic", x, stride)
        channels, height, width = x.shape
        layers: list[nn.Module] = []
        here, biased = channels, config.kernel == 5
        for step in range(config.downsamples):
            wide = config.width * 2**step
            conv: nn.Module = nn.Conv2d(here, wide, config.kernel, STRIDE, padding(config.kernel), bias=biased)
            layers.append(conv if step else told(conv, cond, wide, "dcgan-critic"))
            layers += [*normal(config.norm if step else "none", wide), nn.LeakyReLU(SLOPE)]
            here = wide
        left = here * (height // stride) * (width // stride)
        last = nn.Linear(left, out.size, bias=biased)
        self.body = nn.Sequential(*layers, nn.Flatten(), last, nn.Unflatten(1, out.shape))
        start(self, config.kernel, config.norm)

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        return through(self.body, x, cond)
