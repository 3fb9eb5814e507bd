"""Residual blocks that can change the resolution, and the attention beside them: what ADM, DDPM++ and NCSN++ share.

    h = conv(resample(swish(norm(x)))),   h = swish(norm(h + level))  or  swish(norm(h) (1 + scale) + shift)
    y = gain (shortcut(resample(x)) + conv(dropout(h)))

Resampling by two is an even, symmetric filter along both axes, the image surrounded by zeros: `[1, 1]` repeats pixels on
the way up and takes the mean of four on the way down; `[1, 3, 3, 1]` is smoother.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.unet import upsampled
from gencli.nn.attention import attend
from gencli.nn.film import film
from gencli.nn.sides import check_sides

Way = Literal["up", "down"]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
BOX = (1.0, 1.0)
MOST_GROUPS, LEAST_CHANNELS = 32, 4  # of a norm, and of one of its groups


@dataclass(frozen=True)
class Style:
    """What all blocks of a network have in common."""

    embedding: int  # width of the embedded level
    dropout: float = 0.0
    scale_shift: bool = False  # whether the level scales and shifts the second norm, or is added before it
    eps: float = 1e-5  # of the norms
    gain: float = 1.0  # of every sum with a shortcut
    filter: tuple[float, ...] = BOX
    project: bool = False  # whether a shortcut that resamples has a 1×1 convolution even between equal widths


class ResBlock(nn.Module):
    """A residual block that is told the noise level and may halve or double the sides."""

    def __init__(self, channels: int, width: int, style: Style, way: Way | None = None) -> None:
        super().__init__()
        self.style = style
        self.norm1, self.conv1 = norm(channels, style.eps), nn.Conv2d(channels, width, 3, padding=1)
        self.level = nn.Linear(style.embedding, width * (1 + style.scale_shift))
        self.norm2, self.conv2 = norm(width, style.eps), zeroed(nn.Conv2d(width, width, 3, padding=1))
        self.dropout = nn.Dropout(style.dropout)
        self.resample = Resample(way, style.filter) if way else None
        projected = channels != width or (way is not None and style.project)
        self.shortcut = nn.Conv2d(channels, width, 1) if projected else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h, told = F.silu(self.norm1(x)), self.level(embedded)
        if self.resample is None:
            h = self.conv1(h)
        else:
            h, x = self.resample.then(h, self.conv1), self.resample(x)
        if self.style.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = film(self.norm2(h), 1 + scale, shift)
        else:
            h = self.norm2(h.add_(told[:, :, None, None]))
        h = self.conv2(self.dropout(F.silu(h))).add_(self.shortcut(x))
        return h if self.style.gain == 1 else h * self.style.gain


class SelfAttention(nn.Module):
    """Attention over the pixels of a feature map, added to it."""

    def __init__(self, width: int, heads: int, eps: float = 1e-5, gain: float = 1.0) -> None:
        super().__init__()
        self.heads, self.gain = heads, gain
        self.norm, self.qkv, self.out = norm(width, eps), nn.Linear(width, 3 * width), zeroed(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (N, H·W, C)
        n, tokens, width = h.shape
        q, k, v = self.qkv(h).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (N, heads, H·W, D) each
        h = self.out(attend(q, k, v).transpose(1, 2).reshape(n, tokens, width))
        h = x + h.transpose(1, 2).reshape(x.shape)
        return h if self.gain == 1 else h * self.gain


class Stage(nn.Module):
    """A residual block, attention at some sides, and at the end of a level of the expanding path what leads to the next."""

    def __init__(self, block: ResBlock, look: SelfAttention | None = None, leave: nn.Module | None = None) -> None:
        super().__init__()
        self.block, self.look, self.leave = block, look, leave

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        h = self.block(h, embedded)
        h = h if self.look is None else self.look(h)
        return h if self.leave is None else self.leave(h, embedded)


class Resample(nn.Module):
    """Twice or half the sides by an even, symmetric filter."""

    kernel: Tensor  # (1, 1, L, L), of sum 1

    def __init__(self, way: Way, taps: Sequence[float]) -> None:
        super().__init__()
        self.way, self.box = way, tuple(taps) == BOX
        self.register_buffer("kernel", kernel(taps), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            return F.avg_pool2d(x, 2) if self.way == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
        weight = self.kernel.to(x.dtype).expand(x.shape[1], -1, -1, -1)
        padding = weight.shape[-1] // 2 - 1
        if self.way == "down":
            return F.conv2d(x, weight, stride=2, padding=padding, groups=x.shape[1])
        return F.conv_transpose2d(x, 4 * weight, stride=2, padding=padding, groups=x.shape[1])

    def then(self, x: Tensor, conv: nn.Conv2d) -> Tensor:
        """`conv` (3×3) of the resampled x."""
        return upsampled(x, conv) if self.box and self.way == "up" else conv(self(x))


def kernel(taps: Sequence[float]) -> Tensor:
    """`(1, 1, L, L)`: the filter along both axes, of sum 1.

    Raises:
        GencliError: for a filter that is odd, not symmetric or of sum 0.
    """
    if len(taps) % 2 or not taps or list(taps) != list(reversed(taps)) or not sum(taps):
        raise GencliError(
            f"filter {','.join(f'{tap:g}' for tap in taps) or '(empty)'} does not resample by two",
            "give an even number of symmetric weights: --net.filter 1,1 or 1,3,3,1",
        )
    line = [tap / sum(taps) for tap in taps]
    return torch.tensor([[[[a * b for b in line] for a in line]]])


def norm(channels: int, eps: float) -> nn.GroupNorm:
    """Group norm with the most groups that divide the channels, up to 32, of 4 channels or more."""
    most = max(min(MOST_GROUPS, channels // LEAST_CHANNELS), 1)
    return nn.GroupNorm(next(g for g in range(most, 0, -1) if channels % g == 0), channels, eps=eps)


def zeroed(layer: Layer) -> Layer:
    """The layer with weights and bias 0."""
    for weight in layer.parameters():
        nn.init.zeros_(weight)
    return layer


def level_widths(network: str, width: int, mults: Sequence[float]) -> list[int]:
    """Channels of each level."""
    made = [int(width * mult) for mult in mults]
    if not made or min(made) < 1:
        raise GencliError(
            f"network {network}: width {width} times {','.join(f'{m:g}' for m in mults) or '(nothing)'} leaves no channels",
            "give a positive multiple for each level, such as --net.mults 1,2,2",
        )
    return made


def check_image(network: str, x: Field, stride: int) -> None:
    """Refuse what is no image, and an image whose sides `stride` does not divide."""
    if len(x.shape) != 3:
        raise GencliError(
            f"network {network} needs images (channels, height, width), the data are {x.kind} of shape {x.shape}",
            "choose another network with --net",
        )
    check_sides(*x.shape[1:], stride, "fewer levels in --net.mults")
