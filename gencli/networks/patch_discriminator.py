"""Image-to-Image Translation with Conditional Adversarial Networks: the PatchGAN (Isola et al., 2016). arXiv:1611.07004

Offers: map

`layers` 4×4 convolutions of stride 2, one of stride 1, and one of stride 1 to the scores, with leaky relus of slope 0.2
between; the first makes `width` feature maps, each next but the last twice as many, up to eight times. Each score is about
the patch that its convolutions see (70×70 for three layers) and there are many:

    x (N, C, H, W) → (N, 1, H/2ᴸ − 2, W/2ᴸ − 2)

Width 64 and three layers are the released one: 2,765,633 parameters. Convolutions start from N(0, 0.02²), scales of the
norm from N(1, 0.02²), as there. Batch normalisation always uses the batch at hand and keeps no running statistics: nothing
of the discriminator changes but by its own optimiser. `instance` is the same for a batch of one; with it, `group` (ours) or
`none` items do not see each other.

Raises GencliError for an input that is no image, and for sides that leave no patch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._conv import check_image
from gencli.networks._resample_blocks import norm

SLOPE, MOST, STD = 0.2, 8, 0.02


class PatchDiscriminator(nn.Module, Component):
    """Images `(N, *x.shape)` to scores of patches `(N, out.shape[0], h, w)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(64, "feature maps after the first layer", low=4)
        layers: int = opt(3, "halvings of the side", low=1, high=6)
        norm: Literal["batch", "instance", "group", "none"] = opt(
            "batch", "normalisation between first and last layer: by the batch, or of each item"
        )

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        check_image("patch-discriminator", x, 1)
        least = 3 << config.layers
        if min(x.shape[1:]) < least:
            raise GencliError(
                f"patch-discriminator with {config.layers} layers needs sides of {least} or more, "
                f"the images are {x.shape[1]}×{x.shape[2]}",
                "give it fewer layers: --discriminator.layers 1",
            )
        layers: list[nn.Module] = [nn.Conv2d(x.shape[0], config.width, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        here = config.width
        for layer in range(1, config.layers + 1):
            wide, stride = config.width * min(2**layer, MOST), 2 if layer < config.layers else 1
            layers.append(nn.Conv2d(here, wide, 4, stride=stride, padding=1, bias=config.norm == "none"))
            layers += [*self._norm(wide), nn.LeakyReLU(SLOPE)]
            here = wide
        self.body = nn.Sequential(*layers, nn.Conv2d(here, out.shape[0], 4, padding=1))
        self._start()

    def _norm(self, width: int) -> list[nn.Module]:
        if self.config.norm == "batch":
            return [nn.BatchNorm2d(width, track_running_stats=False)]
        if self.config.norm == "instance":
            return [nn.GroupNorm(width, width)]
        return [norm(width, 1e-5)] if self.config.norm == "group" else []

    def _start(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=STD)
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.normal_(module.weight, 1.0, STD)

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        return self.body(x)
