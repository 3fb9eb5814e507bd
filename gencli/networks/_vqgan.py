"""What the two networks of VQGAN share: residual blocks without a noise level, and their settings.

    y = shortcut(x) + conv(swish(norm(conv(swish(norm(x))))))

The style `maskgit` is that of MaskGIT's tokeniser: no biases inside a block, no attention anywhere, the mean of four pixels
instead of a strided convolution on the way down, and, where widths differ, a shortcut from the inside of the block (its 1×1
convolution sees what the second 3×3 convolution made) as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import opt
from gencli.networks._resample_blocks import SelfAttention, norm

EPS = 1e-6


@dataclass(frozen=True)
class VqganSettings:
    """Settings of the encoder and of the decoder, which have to agree."""

    width: int = opt(128, "feature maps that the multiples are of", low=4)
    mults: tuple[int, ...] = opt((1, 1, 2, 2, 4), "multiples of the width, from the largest side to the smallest")
    blocks: int = opt(2, "residual blocks a level on the way down; one more on the way up", low=1)
    attention: tuple[int, ...] = opt((16,), "sides at which every block is followed by attention")
    z: int = opt(256, "feature maps between the network and the codes' 1×1 projection", low=1)
    style: Literal["vqgan", "maskgit"] = opt("vqgan", "the paper's blocks, or those of MaskGIT's tokeniser")


class Block(nn.Module):
    """A residual block of the given style."""

    def __init__(self, channels: int, width: int, style: str) -> None:
        super().__init__()
        bias = style == "vqgan"
        self.norm1, self.conv1 = norm(channels, EPS), nn.Conv2d(channels, width, 3, padding=1, bias=bias)
        self.norm2, self.conv2 = norm(width, EPS), nn.Conv2d(width, width, 3, padding=1, bias=bias)
        self.inside = style == "maskgit" and channels != width
        self.shortcut: nn.Module = nn.Identity()
        if channels != width:
            self.shortcut = nn.Conv2d(width if self.inside else channels, width, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self.shortcut(h if self.inside else x)


class Down(nn.Module):
    """Half the sides: a 3×3 convolution of stride 2 over an image that is one pixel longer below and to the right."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def looking(width: int) -> SelfAttention:
    """Attention over the pixels, in one head, that is not silent at the start."""
    made = SelfAttention(width, 1, EPS)
    made.out.reset_parameters()
    return made


def stage(channels: int, width: int, blocks: int, look: bool, style: str) -> list[nn.Module]:
    """Blocks from `channels` to `width`, each followed by attention if they `look`."""
    made: list[nn.Module] = []
    for i in range(blocks):
        made.append(Block(width if i else channels, width, style))
        made += [looking(width)] if look and style == "vqgan" else []
    return made


def middle(width: int, style: str) -> list[nn.Module]:
    """The blocks between the two paths."""
    look = [looking(width)] if style == "vqgan" else []
    return [Block(width, width, style), *look, Block(width, width, style)]


def sides(largest: int, mults: Sequence[int]) -> list[int]:
    """The side at each level."""
    return [largest >> level for level in range(len(mults))]
