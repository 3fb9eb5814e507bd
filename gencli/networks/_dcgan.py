"""What the two halves of the convolutional GAN share: how they start and how they normalise."""

from __future__ import annotations

import math
from typing import Literal

from torch import nn

KERNEL, PADDING, STRIDE = 5, 2, 2


def normal(kind: Literal["batch", "layer", "none"], channels: int, flat: bool = False) -> list[nn.Module]:
    """The normalisation of `channels` feature maps, or of as many numbers."""
    if kind == "none":
        return []
    if kind == "layer":
        return [nn.GroupNorm(1, channels)]  # over all of an item, scale and shift by channel
    return [nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels)]


def start(layers: nn.Module) -> None:
    """The released code's start: uniform weights of variance 4 / (ins + outs) in convolutions, half that in linear layers.

    `ins` and `outs` count the numbers that one output reads and one input reaches, so the stride divides one of them.
    """
    for layer in layers.modules():
        if isinstance(layer, nn.Linear):
            variance = 2 / (layer.in_features + layer.out_features)
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            ins, outs = KERNEL**2 * layer.in_channels, KERNEL**2 * layer.out_channels
            if isinstance(layer, nn.Conv2d):
                outs //= STRIDE**2
            else:
                ins //= STRIDE**2
            variance = 4 / (ins + outs)
        else:
            continue
        nn.init.uniform_(layer.weight, -math.sqrt(3 * variance), math.sqrt(3 * variance))
        assert layer.bias is not None, "every layer has a bias"
        nn.init.zeros_(layer.bias)
