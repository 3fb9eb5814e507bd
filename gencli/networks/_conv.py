"""What convolutional encoders and decoders share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gencli.core import Field
from gencli.errors import GencliError
from gencli.nn import sides
from gencli.nn.embed import LabelEmbedding

PLANES = 2


class LabelPlanes(LabelEmbedding):
    """A class label as learned maps, more channels of an image: a convolution cannot know where in the image it is."""

    def __init__(self, label: Field, height: int, width: int) -> None:
        super().__init__(label, PLANES * height * width, std=1.0)

    def beside(self, x: Tensor, label: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C + PLANES, H, W)`."""
        planes = self(label).to(x.dtype).reshape(len(x), PLANES, *x.shape[2:])
        return torch.cat([x, planes], dim=1)


class ResidualStack(nn.Module):
    """`blocks` times h + conv1×1(relu(conv3×3(relu(h)))), then a relu."""

    def __init__(self, width: int, inner: int, blocks: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(width, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, width, 1))
            for _ in range(blocks)
        )

    def forward(self, h: Tensor) -> Tensor:
        for block in self.blocks:
            h = h + block(h)
        return h.relu()


def widths(width: int, steps: int) -> list[int]:
    """Channels after each halving of the side: half the width first, the width from then on."""
    return [width // 2, *[width] * (steps - 1)]


def check_image(who: str, x: Field, stride: int) -> None:
    """Refuse what is no image, and an image whose sides `stride` does not divide."""
    if len(x.shape) != 3:
        raise GencliError(
            f"{who} works on images (channels, height, width), got {x.kind} of shape {x.shape}", "choose image data"
        )
    sides.check_sides(*x.shape[1:], stride)
