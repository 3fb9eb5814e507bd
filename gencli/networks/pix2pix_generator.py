"""Image-to-Image Translation with Conditional Adversarial Networks: the U-Net (Isola et al., 2016). arXiv:1611.07004

Offers: map

4×4 convolutions of stride 2 down to the smallest maps and transposed ones up again; each layer on the way up sees the maps of
its size from the way down beside what came from below:

    e₁ = conv(x),   eᵢ = norm conv lrelu(eᵢ₋₁),   eₙ = conv lrelu(eₙ₋₁)
    d₁ = drop norm tconv relu(eₙ),   dⱼ = drop norm tconv relu[eₙ₋ⱼ₊₁, dⱼ₋₁],   y = tconv relu[e₁, dₙ₋₁]

Slopes of leaky relus are 0.2; the first layer makes `width` feature maps, each next twice as many, up to eight times; the
first `noisy` layers of the way up drop half of their numbers, in training and in sampling. Convolutions start from
N(0, 0.02²), scales of the norm from N(1, 0.02²). Width 64 and eight downsamples are the released one: 54,413,955 parameters
for colours, without biases but in the last layer.

    x (N, C, H, W), keep (N, numbers) → (N, C', H, W),   H and W divisible by 2ⁿ

Normalisation is of each map of each item by itself, which is the paper's batch normalisation by the batch at hand for batches
of one. Dropout is on the three innermost layers, as the paper's appendix says (the code in torch: three after the
innermost). Ours: factors of dropout are an input, `keep`, 1 where nothing is dropped, so that they can be drawn once and kept;
the output is not squashed, the model does that.

Raises GencliError for an input that is no image, and for sides that 2ⁿ does not divide.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._conv import check_image

SLOPE, MOST, STD = 0.2, 8, 0.02


class Pix2PixGenerator(nn.Module, Component):
    """Images `(N, *x.shape)` and factors of dropout to images `(N, *out.shape)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(
            64, "feature maps after the first layer, doubled in each layer after it up to eight times", low=1
        )
        downsamples: int = opt(8, "halvings of the side", low=2, high=10)
        noisy: int = opt(3, "layers on the way up, from the innermost, that drop half of their numbers", low=0)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        check_image("pix2pix-generator", x, 2**config.downsamples)
        wide = [config.width * min(2**i, MOST) for i in range(config.downsamples)]
        self.down = nn.ModuleList(
            nn.Conv2d(here, there, 4, 2, 1, bias=False) for here, there in zip([x.shape[0], *wide], wide, strict=False)
        )
        self.down_norm = nn.ModuleList(each_alone(width) for width in wide[1:-1])
        inner = list(reversed(wide[:-1]))
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(here, there, 4, 2, 1, bias=False)
            for here, there in zip([wide[-1], *(2 * width for width in inner)], inner, strict=False)
        )
        self.up_norm = nn.ModuleList(each_alone(width) for width in inner)
        self.last = nn.ConvTranspose2d(2 * config.width, out.shape[0], 4, 2, 1)
        sides = [[side >> (config.downsamples - 1 - j) for side in x.shape[1:]] for j in range(len(inner))]
        self.drops = [(width, *side) for width, side in zip(inner, sides, strict=True)][: config.noisy]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                nn.init.normal_(module.weight, std=STD)
            elif isinstance(module, nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, STD)
        assert self.last.bias is not None, "the last layer has a bias"
        nn.init.zeros_(self.last.bias)

    @property
    def numbers(self) -> int:
        """Of factors of dropout that an image takes."""
        return sum(torch.Size(shape).numel() for shape in self.drops)

    def forward(self, x: Tensor, keep: Tensor | None = None, **cond: Tensor) -> Tensor:
        kept = [x]
        for i, conv in enumerate(self.down):
            h = conv(F.leaky_relu(kept[-1], SLOPE) if i else x)
            kept.append(self.down_norm[i - 1](h) if 0 < i < len(self.down) - 1 else h)
        factors = [] if keep is None else self._parted(keep)
        h = kept.pop()
        for j, (conv, norm) in enumerate(zip(self.up, self.up_norm, strict=True)):
            h = norm(conv(F.relu(h)))
            h = h * factors[j] if j < len(factors) else h
            h = torch.cat([kept.pop(), h], 1)
        return self.last(F.relu(h))

    def _parted(self, keep: Tensor) -> list[Tensor]:
        """The factors of each layer `(N, C, h, w)`."""
        parts = keep.split([torch.Size(shape).numel() for shape in self.drops], 1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.drops, strict=True)]


def each_alone(channels: int) -> nn.GroupNorm:
    """Normalises every map of every item by itself, with a scale and a shift for each channel."""
    return nn.GroupNorm(channels, channels)
