"""U-Net: Convolutional Networks for Biomedical Image Segmentation (Ronneberger, Fischer & Brox, 2015). arXiv:1505.04597

Offers: denoise

The form that DDPM gave it (Ho, Jain & Abbeel, 2020; arXiv:2006.11239): a contracting and an expanding path whose features
of equal resolution are concatenated; residual blocks (group norm → swish → 3×3 convolution, twice) that add the embedded
noise level between their convolutions; single-head attention after every block at the resolutions in `attention`, and one
between two blocks at the bottom. Downsampling is a 3×3 convolution of stride 2 padded on the right and bottom (TensorFlow's
SAME), upsampling is nearest neighbour and a 3×3 convolution. Weights start uniform with variance 1/fan_avg; the last layer of
every block, of every attention and of the network starts 1e-10 of that, which is zero in effect but has gradients.

Widths 128, multiples 1-2-2-2, 2 blocks, attention at 16 are the CIFAR-10 network: 35,746,307 parameters.

Ours: a class label is embedded (`vocab` rows and one for "no class") and added to the embedded level, as are a `number`
(guided-distillation, ctm) and, behind three layers of its own, a `latent` (ddgan); narrow networks have fewer than 32 groups,
of 4 channels or more as at width 128: a group of one channel would subtract the level that is added to it. `groups`
sets one number for all norms instead, as other libraries have it.

Shapes: x `(N, C, H, W)` with H and W divisible by 2^(levels − 1); level `(N,)`; output `(N, out, H, W)`. `residuals` are added
to the features kept for the expanding path, in the order they are made, the last to the bottom.

Errors: x that is no image, a side that is not divisible, groups that do not divide the width, a condition that is not a label.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.nn.attention import attend
from gencli.nn.embed import LabelEmbedding, LatentEmbedding, NumberEmbedding, label_field, sinusoidal
from gencli.nn.sides import check_sides

NEAR_ZERO = 1e-5  # the gain of a layer whose variance is scaled by 1e-10


class UNet(nn.Module, Component):
    """DDPM's U-Net."""

    role: ClassVar[str] = "denoise"
    expanding: ClassVar[tuple[str, ...]] = ("up", "norm_out", "conv_out")  # what `contract` does without
    features: tuple[int, ...]  # channels of the features kept for the expanding path

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "channels at full resolution", low=4)
        mults: tuple[int, ...] = opt(
            (1, 2, 2, 2), "channels of each level as multiples of the width; each level halves the side"
        )
        blocks: int = opt(2, "residual blocks a level", low=1)
        attention: tuple[int, ...] = opt((16,), "sides of the feature maps that get attention")
        dropout: float = opt(0.0, "dropout in residual blocks", low=0, high=1)
        groups: int = opt(0, "groups of every norm; 0 = a quarter of its channels, at most 32", low=0)

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config = config
        if len(x.shape) != 3:
            raise GencliError(
                f"network unet needs images (channels, height, width), the data are {x.kind} of shape {x.shape}",
                "choose another network with --net",
            )
        check_sides(*x.shape[1:], self.stride, "fewer levels in --net.mults")
        if config.groups and config.width % config.groups:
            raise GencliError(
                f"network unet: width {config.width} is not divisible by {config.groups} groups",
                "choose another --net.groups",
            )
        label = label_field(cond, "unet", also=("number", "latent"))
        width, embedding = config.width, 4 * config.width
        self.time1, self.time2 = _linear(width, embedding), _linear(embedding, embedding)
        self.label = LabelEmbedding(label, embedding, std=1.0) if label else None
        self.number = NumberEmbedding(embedding) if "number" in cond else None
        self.latent = LatentEmbedding(cond["latent"], embedding) if "latent" in cond else None
        self.conv_in = _conv(x.shape[0], width)
        self._build_levels(x.shape[1], embedding)
        last = width * config.mults[0]
        self.norm_out = _norm(last, config.groups)
        self.conv_out = _conv(last, out, gain=NEAR_ZERO)

    def _build_levels(self, side: int, embedding: int) -> None:
        config = self.config
        widths = [config.width * m for m in config.mults]
        kept = [config.width]
        channels, self.down, self.up = config.width, nn.ModuleList(), nn.ModuleList()
        for i, wide in enumerate(widths):
            looks = side // 2**i in config.attention
            inputs = [channels, *[wide] * (config.blocks - 1)]
            resample = _conv(wide, wide, stride=2, padding=0) if i < len(widths) - 1 else None
            self.down.append(_Level(inputs, wide, embedding, config, looks, resample))
            kept += [wide] * (config.blocks + (resample is not None))
            channels = wide
        self.features = tuple(kept)
        self.middle = nn.ModuleList(
            [
                _Block(channels, channels, embedding, config),
                _Attention(channels, config.groups),
                _Block(channels, channels, embedding, config),
            ]
        )
        for i, wide in reversed(list(enumerate(widths))):
            looks = side // 2**i in config.attention
            inputs = [(channels if j == 0 else wide) + kept.pop() for j in range(config.blocks + 1)]
            self.up.append(_Level(inputs, wide, embedding, config, looks, _conv(wide, wide) if i else None))
            channels = wide

    @property
    def stride(self) -> int:
        """What both sides of x must be divisible by."""
        return 2 ** (len(self.config.mults) - 1)

    def forward(self, x: Tensor, level: Tensor, residuals: Sequence[Tensor] | None = None, **cond: Tensor) -> Tensor:
        """The network's output `(N, out, H, W)` for x at the levels `(N,)`."""
        features, h, embedded = self.contract(x, level, cond)
        if residuals is not None:
            assert len(residuals) == len(features) + 1, f"{len(features) + 1} residuals, got {len(residuals)}"
            features = [kept + more for kept, more in zip(features, residuals, strict=False)]
            h = h + residuals[-1]
        for up in self.up:
            assert isinstance(up, _Level)
            h = up.expand(h, features, embedded)
        return self.conv_out(F.silu(self.norm_out(h)))

    def contract(
        self, x: Tensor, level: Tensor, cond: Mapping[str, Tensor], hint: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """The features kept for the expanding path, the bottom, and the embedded level; a hint is added to the first."""
        check_sides(x.shape[-2], x.shape[-1], self.stride, "fewer levels in --net.mults")
        embedded = self._embed(level, cond).to(x.dtype)
        start = channels_last(self.conv_in(x))
        features = [start if hint is None else start + hint]
        for down in self.down:
            assert isinstance(down, _Level)
            features += down.contract(features[-1], embedded)
        first, look, second = self.middle
        return features, second(look(first(features[-1], embedded)), embedded), embedded

    def _embed(self, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        h = self.time1(sinusoidal(level, self.config.width).to(self.time1.weight.dtype))
        h = self.time2(F.silu(h))
        h = h if self.number is None else h + self.number(cond["number"])
        h = h if self.latent is None else h + self.latent(cond["latent"])
        return F.silu(h if self.label is None else h + self.label(cond["label"]))  # every block takes its swish


class _Level(nn.Module):
    """The blocks at one resolution of one path, and what leads to the next."""

    def __init__(
        self,
        inputs: list[int],
        width: int,
        embedding: int,
        config: UNet.Config,
        looks: bool,
        resample: nn.Conv2d | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(channels, width, embedding, config) for channels in inputs)
        self.attentions = nn.ModuleList(_Attention(width, config.groups) for _ in inputs if looks)
        self.resample = resample

    def contract(self, h: Tensor, embedded: Tensor) -> list[Tensor]:
        """Every feature map made at this level, the downsampled one last."""
        made = []
        for block, look in itertools.zip_longest(self.blocks, self.attentions):
            h = block(h, embedded)
            h = look(h) if look is not None else h
            made.append(h)
        if self.resample is not None:
            made.append(self.resample(F.pad(h, (0, 1, 0, 1))))
        return made

    def expand(self, h: Tensor, features: list[Tensor], embedded: Tensor) -> Tensor:
        """Uses up this level's features of the contracting path, from the end."""
        for block, look in itertools.zip_longest(self.blocks, self.attentions):
            h = block(torch.cat([h, features.pop()], dim=1), embedded)
            h = look(h) if look is not None else h
        return h if self.resample is None else upsampled(h, self.resample)


class _Block(nn.Module):
    """A residual block that is told the noise level."""

    def __init__(self, channels: int, width: int, embedding: int, config: UNet.Config) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(channels, config.groups), _conv(channels, width)
        self.level = _linear(embedding, width)
        self.norm2, self.conv2 = _norm(width, config.groups), _conv(width, width, gain=NEAR_ZERO)
        self.dropout = nn.Dropout(config.dropout)
        self.shortcut = _conv(channels, width, kernel=1, padding=0) if channels != width else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))).add_(self.level(embedded)[:, :, None, None])
        return self.conv2(self.dropout(F.silu(self.norm2(h)))).add_(self.shortcut(x))


class _Attention(nn.Module):
    """Single-head attention over the pixels of a feature map, added to it."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(width, groups)
        self.q, self.k, self.v = (_linear(width, width) for _ in range(3))
        self.out = _linear(width, width, gain=NEAR_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (N, H·W, C)
        q, k, v = (layer(h)[:, None] for layer in (self.q, self.k, self.v))  # (N, 1, H·W, C)
        h = self.out(attend(q, k, v)[:, 0])
        return x + h.transpose(1, 2).reshape(x.shape)


def upsampled(h: Tensor, conv: nn.Conv2d) -> Tensor:
    """`conv` (3×3) of `h` at twice its size by nearest neighbour, as one transposed convolution: 4/9 of the products."""
    wide = F.pad(conv.weight, (1, 1, 1, 1))  # repeated pixels see the sum of the weights that fall on them
    sums = wide[..., 1:, 1:] + wide[..., 1:, :-1] + wide[..., :-1, 1:] + wide[..., :-1, :-1]  # (out, in, 4, 4)
    return F.conv_transpose2d(h, sums.flip(2, 3).transpose(0, 1), conv.bias, stride=2, padding=1)


def channels_last(h: Tensor) -> Tensor:
    """The memory layout in which CPUs convolve fastest and attention finds its tokens without a copy."""
    return h.contiguous(memory_format=torch.channels_last) if h.device.type == "cpu" else h


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups or math.gcd(32, max(channels // 4, 1), channels), channels, eps=1e-6)


def _linear(inputs: int, outputs: int, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def _conv(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, padding: int = 1, gain: float = 1.0
) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding)
    nn.init.xavier_uniform_(layer.weight, gain)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
