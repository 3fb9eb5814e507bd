"""Density estimation using Real NVP: the residual network inside couplings (Dinh et al., 2016). arXiv:1605.08803

Offers: map

A 3×3 convolution, `blocks` residual blocks of two 3×3 convolutions with batch normalisation before each rectifier, and a 1×1
convolution from the rectified sum of all blocks' outputs, each through its own 1×1 convolution. Filters are weight-normed.
Images keep their size. As in the authors' code; their networks count the same parameters. Ours: a class label is seen as
learned maps, `PLANES` more channels of the input, since a convolution cannot know where in the image it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._conv import PLANES, LabelPlanes, check_image
from gencli.nn.embed import label_field
from gencli.nn.moving_norm import ShiftedNorm
from gencli.nn.weight_norm import WeightNormConv2d


class CouplingResnet(nn.Module, Component):
    """`(N, C, H, W)` to `(N, *out.shape)` with the same sides."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(32, "feature maps", low=1)
        blocks: int = opt(2, "residual blocks", low=1)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        check_image("coupling-resnet", x, 1)
        if x.shape[1:] != out.shape[1:]:
            raise GencliError(
                f"coupling-resnet keeps the sides of images and cannot make {out.shape} from {x.shape}",
                "choose another network",
            )
        width, blocks = config.width, config.blocks
        label = label_field(cond or {}, "coupling-resnet")
        self.label = LabelPlanes(label, *x.shape[1:]) if label else None
        self.first = WeightNormConv2d(x.shape[0] + (PLANES if label else 0), width, 3, magnitude=False)
        self.blocks = nn.ModuleList(_block(width) for _ in range(blocks))
        self.skips = nn.ModuleList(WeightNormConv2d(width, width, 1) for _ in range(blocks + 1))
        self.last = nn.Sequential(ShiftedNorm(width), nn.ReLU(), WeightNormConv2d(width, out.shape[0], 1))

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        if self.label is not None:
            x = self.label.beside(x, cond["label"])
        h = self.first(x)
        total = self.skips[0](h)
        for block, skip in zip(self.blocks, self.skips[1:], strict=True):
            h = h + block(h)
            total = total + skip(h)
        return self.last(total)


def _block(width: int) -> nn.Module:
    inner = WeightNormConv2d(width, width, 3, magnitude=False, bias=False)
    return nn.Sequential(
        *(ShiftedNorm(width), nn.ReLU(), inner),
        *(ShiftedNorm(width), nn.ReLU(), WeightNormConv2d(width, width, 3)),
    )
