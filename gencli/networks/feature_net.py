"""A small convolutional classifier whose penultimate layer serves as features of small images.

Offers: features, class-logits

Six convolutions with batch normalisation and GELU: w at 28×28, 1.5 w twice at 14×14, 3 w twice at 7×7, 4 w at 4×4;
the mean over space, then a linear layer with GELU gives the features, and another linear layer the class logits.

Ours: the input is any float image in [0, 1], `(N, C, H, W)` with C = 1 or 3: made grey (Rec. 601 luma) and resized to
28×28 by an antialiased bilinear filter, so that one network serves 16×16 digits and 28×28 clothes alike. The 20 classes
of the bundled weights are the ten digits, then the ten classes of Fashion-MNIST.

Raises: GencliError for images that are neither grey nor RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.errors import GencliError

SIDE = 28
LUMA = (0.299, 0.587, 0.114)


class FeatureNet(nn.Module, Component):
    """Images of any size to features and to logits of known classes."""

    role: ClassVar[str] = "features"
    stride: ClassVar[int] = 1  # every size is resized

    @dataclass(frozen=True)
    class Config:
        width: int = opt(32, "channels of the first layer", low=2, high=512)
        features: int = opt(64, "size of the feature vector", low=2, high=4096)
        classes: int = opt(20, "number of classes", low=2, high=100_000)

    def __init__(self, config: Config) -> None:
        nn.Module.__init__(self)
        self.config = config
        w = config.width
        self.body = nn.Sequential(
            *_layer(1, w, 1),
            *_layer(w, 3 * w // 2, 2),
            *_layer(3 * w // 2, 3 * w // 2, 1),
            *_layer(3 * w // 2, 3 * w, 2),
            *_layer(3 * w, 3 * w, 1),
            *_layer(3 * w, 4 * w, 2),
        )
        self.neck = nn.Linear(4 * w, config.features)
        self.head = nn.Linear(config.features, config.classes)

    def features(self, x: Tensor) -> Tensor:
        """`(N, features)` from images in [0, 1]."""
        h = self.body((canvas(x) - 0.25) / 0.35)  # (N, 4 w, 4, 4), roughly unit variance in
        return F.gelu(self.neck(h.mean((2, 3))))

    def class_logits(self, x: Tensor, sigma: Tensor | None = None) -> Tensor:
        """`(N, classes)`; trained on clean images only, so `sigma` must be absent."""
        assert sigma is None, "FeatureNet classifies clean images only"
        return self.head(self.features(x))

    def forward(self, x: Tensor) -> Tensor:
        """The class logits."""
        return self.class_logits(x)


def canvas(x: Tensor) -> Tensor:
    """Grey `(N, 1, 28, 28)` in [0, 1] from images `(N, 1 or 3, H, W)` in [0, 1]."""
    channels = x.shape[1]
    if channels not in (1, 3):
        raise GencliError(
            f"the bundled features take images of 1 or 3 channels, these have {channels}",
            "use `--features pixels` for other numbers of channels",
        )
    if channels == 3:
        x = (x * torch.tensor(LUMA, dtype=x.dtype, device=x.device)[:, None, None]).sum(1, keepdim=True)
    if x.shape[-2:] != (SIDE, SIDE):
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
    return x


def _layer(inner: int, outer: int, stride: int) -> tuple[nn.Module, ...]:
    conv = nn.Conv2d(inner, outer, 3, stride=stride, padding=1, bias=False)
    return conv, nn.BatchNorm2d(outer), nn.GELU()
