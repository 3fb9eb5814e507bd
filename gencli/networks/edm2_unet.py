"""Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2023). arXiv:2312.02696

Offers: denoise

EDM2's magnitude-preserving network (configuration G): a U-Net of the layers in `nn/magnitude.py`, in which nothing
grows or vanishes, so that it needs no norms with parameters, no biases, and no warm-up:

    encoder block   x ← pixel norm(conv₁ₓ₁(resampled x)),   decoder block   x ← conv₁ₓ₁ after the residual branch
    y = conv(silu(conv(silu(x)) · (1 + gain · Linear(c)))),   x ← sum(x, y; 0.3)
    x ← sum(x, attention(x); 0.3), cosine attention: queries, keys and values of magnitude 1;   x ← clip(x, ±256)

c = silu(sum(Linear(waves of the level), Linear(class); 0.5)). Kept features are joined by the balanced cat at 0.5. x
gets a channel of ones instead of biases. The output's gain and the blocks' gains start at 0: the output is 0.

Width 128 (XS) has 124,713,125 parameters on 4×64×64 latents with 1,000 classes and 124,201,125 without; width 64 (XXS)
31,308,901; width 192 (S) on 3×64×64 images 280,209,253. The official counts have 128 more: of the loss's log-variance.

Whoever trains it calls `normalise_weights` after every step.

Ours: the null label is a class vector of zeros, as in the official code, but trained where labels are dropped. Heads
are the most that divide the channels and leave 64 or more to each, at least one.

Shapes: x `(N, C, H, W)` with H and W divisible by 2^(levels − 1); level `(N,)`, a number of the order of 1, as ¼ log σ:
waves are too fast for an index; output `(N, out, H, W)`. `residuals` are added to the features kept for the decoder, in
the order they are made, the last to the bottom.

Errors: x that is no image, a side that is not divisible, a condition that is not a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.unet import channels_last
from gencli.nn.attention import attend
from gencli.nn.embed import label_field
from gencli.nn.magnitude import MPFourier, MPLayer, mp_cat, mp_silu, mp_sum, normalise_weights, unit_magnitude
from gencli.nn.sides import check_sides

BRANCH = 0.3  # share of residual branches and of attention in a sum
EVEN = 0.5  # share of the class against the level, and of kept features against those from below
LIMIT = 256.0  # of activations, for half precision
HEAD = 64  # least channels of an attention head


class Edm2UNet(nn.Module, Component):
    """EDM2's U-Net."""

    role: ClassVar[str] = "denoise"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "channels at full resolution", low=1)
        mults: tuple[int, ...] = opt(
            (1, 2, 3, 4), "channels of each level as multiples of the width; each level halves the side"
        )
        blocks: int = opt(3, "residual blocks a level", low=1)
        attention: tuple[int, ...] = opt((16, 8), "sides of the feature maps that get attention")
        dropout: float = opt(0.0, "dropout in residual blocks", low=0, high=1)

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config = config
        if len(x.shape) != 3:
            raise GencliError(
                f"network edm2-unet needs images (channels, height, width), the data are {x.kind} of shape {x.shape}",
                "choose another network with --net",
            )
        check_sides(*x.shape[1:], self.stride, "fewer levels in --net.mults")
        label, widths = label_field(cond, "edm2-unet"), [config.width * m for m in config.mults]
        self.classes = (label.vocab or 0) if label else 0
        self.waves, self.level = MPFourier(widths[0]), MPLayer(widths[0], max(widths))
        self.label = MPLayer(self.classes, max(widths)) if label else None
        self.conv_in = MPLayer(x.shape[0] + 1, widths[0], kernel=3)
        self._build_levels(x.shape[1], widths)
        self.conv_out, self.gain = MPLayer(widths[0], out, kernel=3), nn.Parameter(torch.zeros([]))

    def _build_levels(self, side: int, widths: list[int]) -> None:
        config, told = self.config, max(widths)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        channels, kept = widths[0], [widths[0]]
        for i, wide in enumerate(widths):
            looks = side // 2**i in config.attention
            if i:
                self.encoder.append(_Block(channels, channels, told, config, "encoder", "down"))
                kept.append(channels)
            for _ in range(config.blocks):
                self.encoder.append(_Block(channels, wide, told, config, "encoder", looks=looks))
                kept.append(wide)
                channels = wide
        self.middle = nn.ModuleList(
            _Block(channels, channels, told, config, "decoder", looks=looks) for looks in (True, False)
        )
        for i, wide in reversed(list(enumerate(widths))):
            looks = side // 2**i in config.attention
            if i < len(widths) - 1:
                self.decoder.append(_Block(channels, channels, told, config, "decoder", "up"))
            for _ in range(config.blocks + 1):
                self.decoder.append(
                    _Block(channels + kept.pop(), wide, told, config, "decoder", looks=looks, joins=True)
                )
                channels = wide

    @property
    def stride(self) -> int:
        """What both sides of x must be divisible by."""
        return 2 ** (len(self.config.mults) - 1)

    def normalise(self) -> None:
        """Forced weight normalisation, after a step of training."""
        normalise_weights(self)

    def forward(self, x: Tensor, level: Tensor, residuals: Sequence[Tensor] | None = None, **cond: Tensor) -> Tensor:
        """The network's output `(N, out, H, W)` for x at the levels `(N,)`."""
        check_sides(x.shape[-2], x.shape[-1], self.stride, "fewer levels in --net.mults")
        c = self._embed(level, cond).to(x.dtype)
        h = self.conv_in(channels_last(torch.cat([x, torch.ones_like(x[:, :1])], dim=1)))
        features = [h]
        for block in self.encoder:
            h = block(h, c)
            features.append(h)
        for block in self.middle:
            h = block(h, c)
        if residuals is not None:
            assert len(residuals) == len(features) + 1, f"{len(features) + 1} residuals, got {len(residuals)}"
            features = [kept + more for kept, more in zip(features, residuals, strict=False)]
            h = h + residuals[-1]
        for block in self.decoder:
            h = block(mp_cat(h, features.pop(), EVEN) if block.joins else h, c)
        return self.conv_out(h, gain=self.gain)

    def _embed(self, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        c = self.level(self.waves(level).to(self.level.weight.dtype))
        if self.label is not None:
            one_hot = F.one_hot(cond["label"], self.classes + 1)[:, :-1].to(c.dtype)  # the null label is all zeros
            c = mp_sum(c, self.label(one_hot * self.classes**0.5), EVEN)
        return mp_silu(c)


class _Block(nn.Module):
    """A residual block, perhaps after resampling, perhaps with attention; `joins` says that it takes kept features too."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        told: int,
        config: Edm2UNet.Config,
        path: Literal["encoder", "decoder"],
        resample: Literal["keep", "down", "up"] = "keep",
        looks: bool = False,
        joins: bool = False,
    ) -> None:
        super().__init__()
        self.encodes, self.resample, self.dropout, self.joins = path == "encoder", resample, config.dropout, joins
        self.conv1 = MPLayer(outputs if self.encodes else inputs, outputs, kernel=3)
        self.told, self.gain = MPLayer(told, outputs), nn.Parameter(torch.zeros([]))
        self.conv2 = MPLayer(outputs, outputs, kernel=3)
        self.skip = MPLayer(inputs, outputs, kernel=1) if inputs != outputs else nn.Identity()
        self.attention = _Attention(outputs) if looks else nn.Identity()

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        x = _resampled(x, self.resample)
        if self.encodes:
            x = unit_magnitude(self.skip(x), [1])
        scale = 1 + self.told(c, gain=self.gain)[:, :, None, None]
        y = mp_silu(self.conv1(mp_silu(x)) * scale)
        y = self.conv2(F.dropout(y, self.dropout, self.training))
        x = mp_sum(x if self.encodes else self.skip(x), y, BRANCH)
        return self.attention(x).clamp(-LIMIT, LIMIT)


class _Attention(nn.Module):
    """Cosine attention over the pixels of a feature map, summed with it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = next(n for n in range(max(width // HEAD, 1), 0, -1) if width % n == 0)
        self.qkv, self.proj = MPLayer(width, 3 * width, kernel=1), MPLayer(width, width, kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        parts = self.qkv(x).reshape(n, self.heads, -1, 3, height * width)  # a head's channels, each as q, k, v
        q, k, v = unit_magnitude(parts, [2]).permute(3, 0, 1, 4, 2)  # (N, heads, H·W, D) each
        y = attend(q, k, v).transpose(2, 3).reshape(x.shape)
        return mp_sum(x, self.proj(y), BRANCH)


def _resampled(x: Tensor, way: str) -> Tensor:
    if way == "keep":
        return x
    return F.avg_pool2d(x, 2) if way == "down" else F.interpolate(x, scale_factor=2, mode="nearest")
