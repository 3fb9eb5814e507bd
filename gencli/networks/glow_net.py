"""Glow: the network of its couplings (Kingma & Dhariwal, 2018). arXiv:1807.03039

Offers: map

    3×3 convolution to `width` channels · actnorm · relu · 1×1 convolution · actnorm · relu · 3×3 convolution from zero

As in the released code: weights from N(0, 0.05²) without biases before the normalisations; the last convolution starts at
zero, (W x + b) exp(3 l); a 3×3 convolution sees one more channel, which is one where it pads the image and zero inside it.

Shapes: images `(N, C, H, W)` to `(N, *out.shape)` of the same sides. A class label adds a learned row to what the first
convolution makes (ours).

Errors: what is no image, or changes its sides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.nn.actnorm import FACTOR, ActNorm
from gencli.nn.embed import LabelEmbedding, label_field


class GlowNet(nn.Module, Component):
    """Shift and scale of a coupling."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(512, "channels of the hidden layers", low=1)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        if len(x.shape) != 3 or x.shape[1:] != out.shape[1:]:
            raise GencliError(f"glow-net maps images to images, got {x.shape} to {out.shape}", "choose another network")
        width = config.width
        self.first, self.norm = nn.Conv2d(x.shape[0] + 1, width, 3, bias=False), ActNorm(width)
        self.second, self.norm_too = nn.Conv2d(width, width, 1, bias=False), ActNorm(width)
        for layer in (self.first, self.second):
            nn.init.normal_(layer.weight, std=0.05)
        self.last = FromZero(width, out.shape[0])
        label = label_field(cond or {}, "glow-net")
        self.label = LabelEmbedding(label, width, std=0.05) if label else None

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        told = None if self.label is None else self.label(cond["label"])[..., None, None]
        h = _normalised(edged, self.first.weight, self.norm, x, told).relu()
        return self.last(_normalised(F.conv2d, self.second.weight, self.norm_too, h).relu())


def _normalised(
    conv: Callable[..., Tensor], weight: Tensor, norm: ActNorm, x: Tensor, told: Tensor | None = None
) -> Tensor:
    """norm(conv(x) + told), folded into the convolution where nothing stands between them and the norm was set."""
    if told is None and not norm.fitting:
        return conv(x, *norm.after(weight))
    made = conv(x, weight, None)
    return norm(made if told is None else made + told)


class FromZero(nn.Module):
    """A 3×3 convolution that makes zeros at first."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner + 1, outer, 3)
        nn.init.zeros_(self.conv.weight)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)
        self.log_scale = nn.Parameter(torch.zeros(outer, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        slope = (FACTOR * self.log_scale).exp()
        assert self.conv.bias is not None
        return edged(x, self.conv.weight * slope[..., None], self.conv.bias * slope.flatten())


def edged(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3×3 convolution of images and of one more channel, which is one where it pads them and zero inside."""
    outputs, inputs = weight.shape[0], x.shape[1]
    if inputs < outputs:
        frame = F.pad(x.new_zeros(len(x), 1, *x.shape[2:]), (1, 1, 1, 1), value=1.0)
        return F.conv2d(torch.cat([F.pad(x, (1, 1, 1, 1)), frame], dim=1), weight, bias)
    frame = F.pad(x.new_zeros(1, 1, *x.shape[2:]), (1, 1, 1, 1), value=1.0)  # the same for all images: added at the end
    return F.conv2d(x, weight[:, :-1], bias, padding=1) + F.conv2d(frame, weight[:, -1:])
