"""Variational Diffusion Models: the U-Net without resampling (Kingma et al., 2021). arXiv:2107.00630

Offers: denoise

A likelihood counts the finest details, so no feature map is ever smaller than the image: `layers` residual blocks keep
their outputs, two blocks with attention between them follow, and layers + 1 blocks take the kept maps back, last made
first. Fine values are made visible by Fourier features of x, further input channels, and the output adds to x:

    into = [x, sin(2π 2ⁿ x), cos(2π 2ⁿ x)] for n in `fourier`,   F(x, t) = x + network(into, t),   t in [0, 1000]

t is the normalised γ times 1000. Layers start LeCun normal, those before a sum and the last at zero: F = x.

Width 128 with 32 layers is CIFAR-10's network: 30,578,179 parameters (and two of γ); width 256 is ImageNet-32's:
122,137,603; with 64 layers ImageNet-64's: 237,603,843; width 256 with attention after every block is the paper's for
augmented CIFAR-10: 139,276,803.

Ours: the frequencies are for 256 grey levels, whose distance is a wave of the fastest; data of V levels get V / 256 of them.
A class label is embedded (`vocab` rows and one for "no class") and added to the embedded level. Norms have as many groups as
in `unet` where the width is small. The official network also embeds one number that says how an image was augmented; it is
always 0 here.

Shapes: x `(N, C, H, W)` of any sides; level `(N,)` in [0, 1000]; output `(N, out, H, W)`, out at least C. `residuals` are
added to the layers + 1 maps kept, in the order they are made, the last to the middle's output.

Errors: x that is no image, a condition that is not a label.
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
from gencli.networks.unet import channels_last
from gencli.nn.attention import attend
from gencli.nn.embed import LabelEmbedding, label_field, sinusoidal

LEVELS = 256  # that the frequencies are for
CUT = 0.8796256610342398  # the standard deviation of a standard normal cut at ±2


class VdmUNet(nn.Module, Component):
    """Residual blocks at full resolution with long skips."""

    role: ClassVar[str] = "denoise"
    stride: ClassVar[int] = 1

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "channels everywhere", low=4)
        layers: int = opt(32, "residual blocks before the middle; one more follow it", low=1)
        fourier: tuple[int, ...] = opt((6, 7), "powers of two that multiply 2πx in the Fourier features")
        attention: bool = opt(False, "attention after every block, not only in the middle")
        dropout: float = opt(0.0, "dropout in residual blocks", low=0, high=1)

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config, self.out = config, out
        if len(x.shape) != 3:
            raise GencliError(
                f"network vdm-unet needs images (channels, height, width), the data are {x.kind} of shape {x.shape}",
                "choose another network with --net",
            )
        assert out >= x.shape[0], f"an output that adds to x has its {x.shape[0]} channels and perhaps more, not {out}"
        label, width, looks = label_field(cond, "vdm-unet"), config.width, config.attention
        self.time1, self.time2 = _linear(width + 1, 4 * width), _linear(4 * width, 4 * width)
        self.label = LabelEmbedding(label, 4 * width, std=1.0) if label else None
        self.levels = x.vocab or LEVELS
        self.conv_in = _conv(x.shape[0] * (1 + 2 * len(config.fourier)), width)
        self.down = _Path([width] * config.layers, config, looks)
        self.middle = nn.ModuleList([_Block(width, config), _Attention(width), _Block(width, config)])
        self.up = _Path([2 * width] * (config.layers + 1), config, looks)
        self.norm_out, self.conv_out = _norm(width), _conv(width, out, zero=True)

    def forward(self, x: Tensor, level: Tensor, residuals: Sequence[Tensor] | None = None, **cond: Tensor) -> Tensor:
        """The network's output `(N, out, H, W)` for x at the levels `(N,)`."""
        embedded = self._embed(level, cond).to(x.dtype)
        h = channels_last(self.conv_in(fourier_features(x, self.config.fourier, self.levels)))
        features = [h]
        for block, look in self.down.pairs():
            h = look(block(h, embedded))
            features.append(h)
        first, look, second = self.middle
        h = second(look(first(h, embedded)), embedded)
        if residuals is not None:
            assert len(residuals) == len(features) + 1, f"{len(features) + 1} residuals, got {len(residuals)}"
            features = [kept + more for kept, more in zip(features, residuals, strict=False)]
            h = h + residuals[-1]
        for block, look in self.up.pairs():
            h = look(block(torch.cat([h, features.pop()], dim=1), embedded))
        return self.conv_out(F.silu(self.norm_out(h))) + F.pad(x, (0, 0, 0, 0, 0, self.out - x.shape[1]))

    def _embed(self, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        waves = F.pad(sinusoidal(level, self.config.width), (0, 1))  # no augmentation
        h = self.time2(F.silu(self.time1(waves.to(self.time1.weight.dtype))))
        return F.silu(h if self.label is None else h + self.label(cond["label"]))


class _Path(nn.Module):
    """Blocks, each perhaps followed by attention."""

    def __init__(self, inputs: list[int], config: VdmUNet.Config, looks: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block(channels, config) for channels in inputs)
        self.attention = nn.ModuleList(_Attention(config.width) for _ in inputs if looks)

    def pairs(self) -> itertools.zip_longest[tuple[nn.Module, nn.Module]]:
        """Every block and what looks at its output."""
        return itertools.zip_longest(self.blocks, self.attention, fillvalue=nn.Identity())


class _Block(nn.Module):
    """A residual block that is told the noise level."""

    def __init__(self, channels: int, config: VdmUNet.Config) -> None:
        super().__init__()
        width = config.width
        self.norm1, self.conv1 = _norm(channels), _conv(channels, width)
        self.level = _linear(4 * width, width, bias=False, zero=True)
        self.norm2, self.conv2 = _norm(width), _conv(width, width, zero=True)
        self.dropout = nn.Dropout(config.dropout)
        self.shortcut = _conv(channels, width, kernel=1) if channels != width else nn.Identity()

    def forward(self, x: Tensor, embedded: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))).add_(self.level(embedded)[:, :, None, None])
        return self.conv2(self.dropout(F.silu(self.norm2(h)))).add_(self.shortcut(x))


class _Attention(nn.Module):
    """Single-head attention over the pixels of a feature map, added to it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = _norm(width)
        self.q, self.k, self.v = (_linear(width, width) for _ in range(3))
        self.out = _linear(width, width, zero=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x).flatten(2).transpose(1, 2)  # (N, H·W, C)
        q, k, v = (layer(h)[:, None] for layer in (self.q, self.k, self.v))  # (N, 1, H·W, C)
        return x + self.out(attend(q, k, v)[:, 0]).transpose(1, 2).reshape(x.shape)


def fourier_features(x: Tensor, powers: Sequence[int], levels: int = LEVELS) -> Tensor:
    """`(N, C, H, W)` to `(N, C (1 + 2 powers), H, W)`: x, then sines, then cosines of 2π 2ⁿ (levels / 256) x."""
    if not powers:
        return x
    wide = x if x.dtype == torch.float64 else x.float()  # 2π 2⁷ x in half precision has lost its phase
    frequency = torch.tensor(
        [2 * math.pi * 2.0**n * levels / LEVELS for n in powers], dtype=wide.dtype, device=x.device
    )
    angle = (wide[:, :, None] * frequency[:, None, None]).flatten(1, 2)
    return torch.cat([x, angle.sin().to(x.dtype), angle.cos().to(x.dtype)], dim=1)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(32, max(channels // 4, 1), channels), channels, eps=1e-6)


def _linear(inputs: int, outputs: int, bias: bool = True, zero: bool = False) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias)
    _initialise(layer, zero)
    return layer


def _conv(inputs: int, outputs: int, kernel: int = 3, zero: bool = False) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
    _initialise(layer, zero)
    return layer


def _initialise(layer: nn.Linear | nn.Conv2d, zero: bool) -> None:
    std = layer.weight[0].numel() ** -0.5 / CUT
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
