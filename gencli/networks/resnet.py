"""Deep Residual Learning for Image Recognition (He et al., 2015). arXiv:1512.03385

Offers: class-logits, features

The paper's networks for small images (section 4.2): a 3×3 convolution, stages of `blocks` residual blocks

    x + BN(conv(ReLU(BN(conv(x))))),   then ReLU

of widths w, 2 w, 4 w, … with half the side each, the mean over space, and a linear layer. Where a stage begins the shortcut
takes every second pixel and pads new channels with zeros, so it has no parameters (the paper's option A). The mean over
space is the features.

With w = 16 and ten classes: 3 blocks a stage are ResNet-20 with 269,722 parameters, 18 are ResNet-110 with 1,727,962.

Shapes: x `(N, C, H, W)`; features `(N, w · 2^(stages − 1))`; output `(N, classes)`.

Errors: x that is no image, or smaller than 2^(stages − 1) pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError


class Resnet(nn.Module, Component):
    """A classifier of clean images."""

    role: ClassVar[str] = "label"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(16, "channels of the first stage", low=1)
        blocks: int = opt(3, "residual blocks a stage", low=1)
        stages: int = opt(3, "stages, each of half the side and twice the channels", low=1, high=8)

    def __init__(self, config: Config, x: Field, classes: int) -> None:
        nn.Module.__init__(self)
        self.config = config
        least = 2 ** (config.stages - 1)
        if len(x.shape) != 3 or min(x.shape[1:]) < least:
            raise GencliError(
                f"resnet classifies images of at least {least} pixels a side, got {x.kind} {x.shape}",
                "choose a data set of images, or fewer --net.stages",
            )
        widths = [config.width * 2**i for i in range(config.stages)]
        self.stem = _Convolution(x.shape[0], config.width, 1)
        self.body = nn.Sequential()
        inner = config.width
        for i, width in enumerate(widths):
            for j in range(config.blocks):
                self.body.append(_Block(inner, width, 2 if i and not j else 1))
                inner = width
        self.head = nn.Linear(inner, classes)

    def features(self, x: Tensor) -> Tensor:
        """`(N, D)`: the mean over space of the last stage."""
        return self.body(F.relu(self.stem(x))).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits `(N, classes)`."""
        return self.head(self.features(x))


class _Convolution(nn.Sequential):
    """A 3×3 convolution and batch normalisation."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        conv = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(outer))


class _Block(nn.Module):
    """x + F(x), with a shortcut that has no parameters."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.stride, self.grown = stride, outer - inner
        self.first = _Convolution(inner, outer, stride)
        self.second = _Convolution(outer, outer, 1)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.grown))
        return F.relu(shortcut + self.second(F.relu(self.first(x))))
