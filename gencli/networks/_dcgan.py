"""What the two halves of the convolutional GAN share: how they start, how they normalise, how they are told a class."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from gencli.core import Field
from gencli.nn.embed import LabelEmbedding, label_field
from gencli.nn.spectral import spectral

STRIDE = 2
Kernel = Literal[4, 5]
Norm = Literal["batch", "layer", "spectral", "none"]


def padding(kernel: Kernel) -> int:
    """What makes a convolution of stride 2 halve a side."""
    return (kernel - 1) // 2


def normal(kind: Norm, channels: int, flat: bool = False) -> list[nn.Module]:
    """The normalisation of `channels` feature maps, or of as many numbers."""
    if kind in ("none", "spectral"):
        return []
    if kind == "layer":
        return [nn.GroupNorm(1, channels)]  # over all of an item, scale and shift by channel
    return [nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels)]


def start(layers: nn.Module, kernel: Kernel, norm: Norm) -> None:
    """The released codes' starts.

    Of 5×5 convolutions (WGAN-GP): uniform weights of variance 4 / (ins + outs) in convolutions, half that in linear layers,
    with `ins` and `outs` the numbers that one output reads and one input reaches, so that the stride divides one of them. Of
    4×4 (DCGAN in torch): weights from N(0, 0.02²), factors of normalisations from N(1, 0.02²).
    """
    for layer in layers.modules():
        if kernel == 4:
            _normally(layer)
        elif isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
            _uniformly(layer, kernel)
    if norm == "spectral":
        for layer in list(layers.modules()):
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                spectral(layer)


def _normally(layer: nn.Module) -> None:
    if isinstance(layer, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(layer.weight, std=0.02)
    elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
        nn.init.normal_(layer.weight, 1.0, 0.02)


def _uniformly(layer: nn.Linear | nn.Conv2d | nn.ConvTranspose2d, kernel: Kernel) -> None:
    if isinstance(layer, nn.Linear):
        variance = 2 / (layer.in_features + layer.out_features)
    else:
        ins, outs = kernel**2 * layer.in_channels, kernel**2 * layer.out_channels
        if isinstance(layer, nn.Conv2d):
            outs //= STRIDE**2
        else:
            ins //= STRIDE**2
        variance = 4 / (ins + outs)
    nn.init.uniform_(layer.weight, -math.sqrt(3 * variance), math.sqrt(3 * variance))
    assert layer.bias is not None, "every layer has a bias"
    nn.init.zeros_(layer.bias)


class Told(nn.Module):
    """A layer and a learned row of each class for what it makes: the class beside its input, as zeros and a one."""

    def __init__(self, layer: nn.Module, label: Field, channels: int) -> None:
        super().__init__()
        self.layer = layer
        self.label = LabelEmbedding(label, channels, std=0.02)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        made, row = self.layer(x), self.label(label)
        return made + row.reshape(*row.shape, *[1] * (made.ndim - 2))


def told(layer: nn.Module, cond: Mapping[str, Field] | None, channels: int, network: str) -> nn.Module:
    """The layer, told the class where there is one."""
    label = label_field(cond or {}, network)
    return Told(layer, label, channels) if label else layer


def through(body: nn.Sequential, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
    """All layers, the first of which is told the class."""
    first, *rest = body
    h = first(x, cond["label"]) if isinstance(first, Told) else first(x)
    for layer in rest:
        h = layer(h)
    return torch.as_tensor(h)
