"""Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021). arXiv:2105.05233

Offers: denoise

The ablated U-Net, which is Improved DDPM's (Nichol & Dhariwal, 2021; arXiv:2102.09672) made wider. It differs from DDPM's in
that the embedded level and class, c, scale and shift a norm of every block instead of being added,

    h ← norm(h) (1 + scale) + shift,   scale, shift = Linear(swish(c))

that residual blocks change the resolution, and that attention has heads of 64 channels at 32×32, 16×16 and 8×8. The last
layer of every block, of every attention and of the network starts at zero: the output is 0 at the start.

The defaults are ImageNet 64×64: 295,904,454 parameters with 6 output channels and 1,000 classes, and 768 for our null class.
Improved DDPM: width 128, head-width 0, attention 16,8, resample conv. Conditional flow matching on CIFAR-10 (35,746,307): width
128, mults 1,2,2,2, blocks 2, attention 16, resample conv, scale-shift off.

Ours: a last row of the class embedding for "no class" (the original has none); narrow networks have fewer than 32 groups in a
norm, of 4 channels or more: a group of one channel would subtract the level that is added to it. An `augment` vector is a
linear map, without bias and zero at the start, added to the sines and cosines of the level, as in EDM's form of this
network; left out of a call it is zero: not augmented.

Shapes: x `(N, C, H, W)` with H and W divisible by 2^(levels − 1); level `(N,)`, whatever number the model tells; output
`(N, out, H, W)`. `residuals` are added to the features kept for the expanding path, in the order they are made, the last to
the bottom.

Errors: x that is no image, a side that is not divisible, channels that heads do not divide, a condition that is neither a
label nor `augment`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component
from gencli.core import Field
from gencli.networks._adm_path import AdmSettings, ContractingPath
from gencli.networks._resample_blocks import ResBlock, Stage, norm, zeroed
from gencli.nn.embed import LabelEmbedding, label_field
from gencli.nn.sides import check_sides


class Adm(nn.Module, Component):
    """ADM's U-Net."""

    role: ClassVar[str] = "denoise"
    expanding: ClassVar[tuple[str, ...]] = ("up", "norm_out", "conv_out")  # what `contract` does without
    features: tuple[int, ...]  # channels of the features kept for the expanding path

    @dataclass(frozen=True)
    class Config(AdmSettings):
        """As shared with the classifier."""

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.path = path = ContractingPath(config, x, "adm")
        label, augment = label_field(cond, "adm", also=("augment",)), cond.get("augment")
        self.label = LabelEmbedding(label, 4 * config.width, std=1.0) if label else None
        self.augment = zeroed(nn.Linear(augment.size, config.width, bias=False)) if augment else None
        self.features = tuple(path.kept)
        channels, kept, self.up = path.kept[-1], list(path.kept), nn.ModuleList()
        for i, wide in reversed(list(enumerate(path.widths))):
            for j in range(config.blocks + 1):
                leave = path.resampler("up", wide) if i and j == config.blocks else None
                block = ResBlock(channels + kept.pop(), wide, path.style)
                self.up.append(Stage(block, path.look(wide, x.shape[1] // 2**i), leave))
                channels = wide
        self.norm_out = norm(channels, path.style.eps)
        self.conv_out = zeroed(nn.Conv2d(channels, out, 3, padding=1))

    @property
    def stride(self) -> int:
        """What both sides of x must be divisible by."""
        return self.path.stride

    def forward(self, x: Tensor, level: Tensor, residuals: Sequence[Tensor] | None = None, **cond: Tensor) -> Tensor:
        """The network's output `(N, out, H, W)` for x at the levels `(N,)`."""
        features, h, embedded = self.contract(x, level, cond)
        if residuals is not None:
            assert len(residuals) == len(features) + 1, f"{len(features) + 1} residuals, got {len(residuals)}"
            features = [kept + more for kept, more in zip(features, residuals, strict=False)]
            h = h + residuals[-1]
        for stage in self.up:
            h = stage(torch.cat([h, features.pop()], dim=1), embedded)
        return self.conv_out(F.silu(self.norm_out(h)))

    def contract(
        self, x: Tensor, level: Tensor, cond: Mapping[str, Tensor], hint: Tensor | None = None
    ) -> tuple[list[Tensor], Tensor, Tensor]:
        """The features kept for the expanding path, the bottom, and the embedded level; a hint is added to the first."""
        check_sides(x.shape[-2], x.shape[-1], self.stride, "fewer levels in --net.mults")
        embedded = self._embed(level, cond).to(x.dtype)
        features = self.path.contract(x, embedded, hint)
        return features, self.path.bottom(features[-1], embedded), embedded

    def _embed(self, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        told = None
        if self.augment is not None and "augment" in cond:
            told = self.augment(cond["augment"].to(self.augment.weight.dtype))
        h = self.path.level(level, told)
        return F.silu(h if self.label is None else h + self.label(cond["label"]))  # every block takes its swish
