"""Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021). arXiv:2011.13456

Offers: denoise

DDPM++ and NCSN++, both in EDM's form (Karras et al., 2022; arXiv:2206.00364). DDPM's U-Net with residual blocks that change
the resolution, every sum with a shortcut divided by √2, and on the expanding path one attention a level, at its end.

    DDPM++  the defaults
    NCSN++  embedding fourier, encoder residual, filter 1,3,3,1

A Fourier embedding is the sines and cosines of 2π f · level at `width` fixed frequencies f ~ N(0, 16²), drawn when the
network is made and kept with its weights. `encoder` residual adds the filtered, halved and convolved image to each resolution
of the contracting path, and what comes of it to the next; skip adds the image itself, halved. `decoder` skip makes an image
at each resolution of the expanding path and sums them.

The defaults are CIFAR-10: 61,804,419 parameters; NCSN++ 62,758,787 (and 128 frequencies); EDM's with mults 2,2,2 and an
augmentation vector of 9 numbers 55,733,891 and 56,397,827, with 10 classes 55,735,299 and 56,400,643.

A label is a linear map of its one-hot vector times √classes, with a bias; no class (index `vocab`) is the vector of zeros. An
`augment` vector is a linear map without bias; left out of a call it is zero: not augmented. Both are added to the embedded
level before its two layers, as is a `latent` (ddgan) behind three layers of its own.

Ours: norms have the most groups, of 4 channels or more and up to 32, that divide their channels. The level is taken as it is:
the original takes the logarithm of σ in front of the Fourier embedding, EDM leaves that to the model, as we do.

Shapes: x `(N, C, H, W)` with H and W divisible by 2^(levels − 1); level `(N,)`; output `(N, out, H, W)`. `residuals` are added
to the features kept for the expanding path, in the order they are made, the last to the bottom.

Errors: x that is no image, a side that is not divisible, a filter that is odd or not symmetric, a condition that is neither a
label nor `augment`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._resample_blocks import (
    BOX,
    Resample,
    ResBlock,
    SelfAttention,
    Stage,
    Style,
    check_image,
    kernel,
    level_widths,
    norm,
)
from gencli.networks.unet import NEAR_ZERO, channels_last
from gencli.nn.embed import LatentEmbedding, label_field, sinusoidal
from gencli.nn.sides import check_sides

HALF = math.sqrt(0.5)  # what a sum of two features is multiplied by
FREQUENCY_SCALE = 16.0


class SongUNet(nn.Module, Component):
    """The network of DDPM++ and NCSN++."""

    role: ClassVar[str] = "denoise"
    frequencies: Tensor  # (width,)

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "channels at full resolution", low=4)
        mults: tuple[int, ...] = opt(
            (1, 2, 2, 2), "channels of each level as multiples of the width; each level halves the side"
        )
        blocks: int = opt(4, "residual blocks a level", low=1)
        attention: tuple[int, ...] = opt((16,), "sides of the feature maps that get attention")
        dropout: float = opt(0.1, "dropout in residual blocks", low=0, high=1)
        embedding: Literal["positional", "fourier"] = opt(
            "positional", "waves of the level at fixed or random frequencies"
        )
        encoder: Literal["standard", "residual", "skip"] = opt(
            "standard", "what the image adds at each resolution: nothing, convolved features, or itself halved"
        )
        decoder: Literal["standard", "skip"] = opt(
            "standard", "make the image at the end, or as a sum over resolutions"
        )
        filter: tuple[float, ...] = opt(BOX, "weights by which sides are halved and doubled, such as 1,3,3,1")

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config = config
        widths = level_widths("song-unet", config.width, config.mults)
        check_image("song-unet", x, self.stride)
        label, augment = label_field(cond, "song-unet", also=("augment", "latent")), cond.get("augment")
        width, waves = config.width, config.width * (2 if config.embedding == "fourier" else 1)
        if config.embedding == "fourier":
            self.register_buffer("frequencies", nn.init.normal_(torch.empty(width), std=FREQUENCY_SCALE))
        self.label = nn.Linear(label.vocab or 0, waves) if label else None
        self.augment = nn.Linear(augment.size, waves, bias=False) if augment else None
        self.latent = LatentEmbedding(cond["latent"], waves) if "latent" in cond else None
        self.time1, self.time2 = nn.Linear(waves, 4 * width), nn.Linear(4 * width, 4 * width)
        self.conv_in = nn.Conv2d(x.shape[0], width, 3, padding=1)
        self._build_levels(x, out, widths)
        self._initialise()

    def _build_levels(self, x: Field, out: int, widths: list[int]) -> None:
        config, side = self.config, x.shape[1]
        style = Style(4 * config.width, config.dropout, eps=1e-6, gain=HALF, filter=config.filter, project=True)
        channels, image, kept = config.width, x.shape[0], [config.width]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, wide in enumerate(widths):
            enter = _Enter(channels, image, style, config.encoder) if i else None
            image = channels if i and config.encoder == "residual" else image
            looks = side // 2**i in config.attention
            self.down.append(_Down(enter, [_stage(c, wide, style, looks) for c in _run(channels, wide, config.blocks)]))
            kept += [*([channels] if i else []), *[wide] * config.blocks]
            channels = wide
        self.middle = nn.ModuleList([_stage(channels, channels, style, True), ResBlock(channels, channels, style)])
        for i, wide in reversed(list(enumerate(widths))):
            *most, last = [c + kept.pop() for c in _run(channels, wide, config.blocks + 1)]
            stages = [_stage(c, wide, style, False) for c in most]
            stages.append(_stage(last, wide, style, side // 2**i in config.attention))
            head = _Head(wide, out) if i == 0 or config.decoder == "skip" else None
            self.up.append(_Up(stages, head, ResBlock(wide, wide, style, "up") if i else None))
            channels = wide
        self.grow = Resample("up", config.filter)  # an image of the expanding path

    def _initialise(self) -> None:
        """Variance 1/fan_avg and zero biases; the last layer of whatever is added to a shortcut near zero."""
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.xavier_uniform_(module.conv2.weight, NEAR_ZERO)
            elif isinstance(module, SelfAttention):
                nn.init.xavier_uniform_(module.qkv.weight, math.sqrt(0.2))
                nn.init.xavier_uniform_(module.out.weight, NEAR_ZERO)
            elif isinstance(module, _Head):
                nn.init.xavier_uniform_(module.conv.weight, NEAR_ZERO)

    @property
    def stride(self) -> int:
        """What both sides of x must be divisible by."""
        return 2 ** (len(self.config.mults) - 1)

    def forward(self, x: Tensor, level: Tensor, residuals: Sequence[Tensor] | None = None, **cond: Tensor) -> Tensor:
        """The network's output `(N, out, H, W)` for x at the levels `(N,)`."""
        check_sides(x.shape[-2], x.shape[-1], self.stride, "fewer levels in --net.mults")
        embedded, image = self._embed(level, cond).to(x.dtype), channels_last(x)
        features = [channels_last(self.conv_in(image))]
        for down in self.down:
            made, image = down(features[-1], image, embedded)
            features += made
        h = features[-1]
        for stage in self.middle:
            h = stage(h, embedded)
        if residuals is not None:
            assert len(residuals) == len(features) + 1, f"{len(features) + 1} residuals, got {len(residuals)}"
            features = [kept + more for kept, more in zip(features, residuals, strict=False)]
            h = h + residuals[-1]
        return self._expand(h, features, embedded)

    def _expand(self, h: Tensor, features: list[Tensor], embedded: Tensor) -> Tensor:
        image: Tensor | None = None
        for up in self.up:
            assert isinstance(up, _Up)
            for stage in up.stages:
                h = stage(torch.cat([h, features.pop()], dim=1), embedded)
            if up.head is not None:
                made = up.head(h)
                image = made if image is None else made + self.grow(image)
            if up.leave is not None:
                h = up.leave(h, embedded)
        assert image is not None, "the last level has a head"
        return image

    def _embed(self, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        h = self._waves(level).to(self.time1.weight.dtype)
        if self.label is not None:
            classes = self.label.in_features
            one_hot = cond["label"][:, None] == torch.arange(classes, device=h.device)
            h = h + self.label(one_hot.to(h.dtype) * math.sqrt(classes))
        if self.augment is not None and "augment" in cond:
            h = h + self.augment(cond["augment"].to(h.dtype))
        if self.latent is not None:
            h = h + self.latent(cond["latent"])
        return F.silu(self.time2(F.silu(self.time1(h))))

    def _waves(self, level: Tensor) -> Tensor:
        if self.config.embedding == "positional":
            return sinusoidal(level, self.config.width)
        wide = level if level.dtype == torch.float64 else level.float()
        angle = wide[:, None] * (2 * math.pi * self.frequencies.to(wide.dtype))  # (N, width)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class _Down(nn.Module):
    """One resolution of the contracting path."""

    def __init__(self, enter: _Enter | None, stages: list[Stage]) -> None:
        super().__init__()
        self.enter, self.stages = enter, nn.ModuleList(stages)

    def forward(self, h: Tensor, image: Tensor, embedded: Tensor) -> tuple[list[Tensor], Tensor]:
        """Every feature map made here, and what the next resolution takes of the image."""
        made = []
        if self.enter is not None:
            h, image = self.enter(h, image, embedded)
            made.append(h)
        for stage in self.stages:
            h = stage(h, embedded)
            made.append(h)
        return made, image


class _Enter(nn.Module):
    """From one resolution to the next lower one, with what the encoder adds of the image."""

    def __init__(
        self, channels: int, image: int, style: Style, encoder: Literal["standard", "residual", "skip"]
    ) -> None:
        super().__init__()
        self.block, self.encoder = ResBlock(channels, channels, style, "down"), encoder
        if encoder == "residual":
            self.shrink: nn.Module = _FilteredConv(image, channels, style.filter)
        elif encoder == "skip":
            self.shrink, self.add = Resample("down", style.filter), nn.Conv2d(image, channels, 1)

    def forward(self, h: Tensor, image: Tensor, embedded: Tensor) -> tuple[Tensor, Tensor]:
        h = self.block(h, embedded)
        if self.encoder == "standard":
            return h, image
        small = self.shrink(image)
        if self.encoder == "skip":
            return h + self.add(small), small
        h = (h + small) * HALF
        return h, h


class _FilteredConv(nn.Module):
    """A 3×3 convolution at half the side, of the image filtered: nothing is cut off between the two."""

    kernel: Tensor

    def __init__(self, inputs: int, outputs: int, taps: Sequence[float]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride=2)
        self.register_buffer("kernel", kernel(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return self.conv(F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=x.shape[1]))


class _Up(nn.Module):
    """One resolution of the expanding path, its image, and what leads to the next."""

    def __init__(self, stages: list[Stage], head: _Head | None, leave: ResBlock | None) -> None:
        super().__init__()
        self.stages, self.head, self.leave = nn.ModuleList(stages), head, leave


class _Head(nn.Module):
    """From features to an image."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.norm, self.conv = norm(width, 1e-6), nn.Conv2d(width, out, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return self.conv(F.silu(self.norm(h)))


def _run(channels: int, wide: int, blocks: int) -> list[int]:
    """What goes into each block of a level."""
    return [channels, *[wide] * (blocks - 1)]


def _stage(channels: int, width: int, style: Style, looks: bool) -> Stage:
    look = SelfAttention(width, 1, style.eps, style.gain) if looks else None
    return Stage(ResBlock(channels, width, style), look)
