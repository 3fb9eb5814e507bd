"""Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019). arXiv:1907.05600

Offers: denoise

NCSN's RefineNet. `depth` stages of two pre-activation residual blocks go down: the first keeps the image's size, the
last two dilate their convolutions (by 2 and 4) instead of halving the side. From the deepest up, a refine block joins
each stage with what comes from below: residual units for either, their 3×3 convolutions added at the stage's size
(bilinear), chained pooling (5×5, twice, each convolved and added), residual units. All with ELU, and with
InstanceNorm++, which gives back to a feature map's channels the means that instance norm takes away:

    y_k = γ_k ((x_k − μ_k) / s_k + α_k (μ_k − m) / v) + β_k,   m, v the mean and std of μ over the channels

With `conditional`, γ, α, β are rows of a table for each of `levels` noise levels, and the refine blocks have norms too,
with average pooling. Without (NCSNv2, arXiv:2006.09011) the network is not told the level: one row, no norms in refine
blocks, max pooling.

Width 128 on CIFAR-10 has 30,117,635 parameters with 10 levels; width 64 on MNIST 7,638,657; without levels 29,694,083,
at depth 5 83,445,379 (NCSNv2's "deeper"), at depth 6 94,132,611 ("deepest").

Ours: x comes in [−1, 1] (the official code takes [0, 1] and rescales it here); a class label adds a row of a table
(`vocab` rows and one for "no class") to the β of every norm.

Shapes: x `(N, C, H, W)` with H and W divisible by 2^(depth − 3); level `(N,)`, an index 0 … levels − 1, as a whole
number in any type; output `(N, out, H, W)`. `residuals` are added to the stages' outputs, in their order, as the refine
blocks take them.

Errors: x that is no image, a side that is not divisible, sides of one pixel at the bottom, a condition that is not a
label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.nn.embed import LabelEmbedding, label_field
from gencli.nn.sides import check_sides


class RefineNet(nn.Module, Component):
    """The network of NCSN and NCSNv2."""

    role: ClassVar[str] = "denoise"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "channels at full resolution", low=2)
        depth: int = opt(4, "stages; all but the first and the last two halve the side", low=4, high=8)
        conditional: bool = opt(True, "norms with a row for each noise level (NCSN); without: not told it (NCSNv2)")
        levels: int = opt(10, "noise levels that the norms have rows for, if conditional", low=1)

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config = config
        if len(x.shape) != 3:
            raise GencliError(
                f"network refinenet needs images (channels, height, width), the data are {x.kind} of shape {x.shape}",
                "choose another network with --net",
            )
        check_sides(*x.shape[1:], self.stride, "a smaller --net.depth")
        if max(x.shape[1:]) == self.stride:
            raise GencliError(
                f"network refinenet of depth {config.depth} leaves one pixel of {x.shape[1]}×{x.shape[2]}: nothing to norm",
                "use a smaller --net.depth or larger images",
            )
        norms = _Norms(config.levels if config.conditional else 1, label_field(cond, "refinenet"))
        widths = [config.width * m for m in self._mults()]
        self.conv_in = nn.Conv2d(x.shape[0], widths[0], 3, padding=1)
        self.stages = nn.ModuleList()
        for i, wide in enumerate(widths):
            dilation = {config.depth - 2: 2, config.depth - 1: 4}.get(i, 1)
            first = _Residual(widths[max(i - 1, 0)], wide, norms, down=i > 0, dilation=dilation)
            self.stages.append(nn.ModuleList([first, _Residual(wide, wide, norms, dilation=dilation)]))
        self.refine = nn.ModuleList(  # from the deepest stage up
            _Refine(
                widths[i], widths[max(i - 1, 0)], norms if config.conditional else None, i == config.depth - 1, i == 0
            )
            for i in reversed(range(config.depth))
        )
        self.norm_out, self.conv_out = norms.make(widths[0]), nn.Conv2d(widths[0], out, 3, padding=1)

    def _mults(self) -> list[int]:
        deepest = 2 if self.config.depth == 4 else 4
        return [1, *[2] * (self.config.depth - 3), deepest, deepest]

    @property
    def stride(self) -> int:
        """What both sides of x must be divisible by."""
        return 2 ** (self.config.depth - 3)

    def forward(self, x: Tensor, level: Tensor, residuals: Sequence[Tensor] | None = None, **cond: Tensor) -> Tensor:
        """The network's output `(N, out, H, W)` for x at the levels `(N,)`."""
        check_sides(x.shape[-2], x.shape[-1], self.stride, "a smaller --net.depth")
        row = level.round().long() if self.config.conditional else torch.zeros_like(level, dtype=torch.long)
        told = _Told(row, cond.get("label"))
        h, features = self.conv_in(x), []
        for stage in self.stages:
            assert isinstance(stage, nn.ModuleList)
            for block in stage:
                h = block(h, told)
            features.append(h)
        if residuals is not None:
            assert len(residuals) == len(features), f"{len(features)} residuals, got {len(residuals)}"
            features = [kept + more for kept, more in zip(features, residuals, strict=True)]
        below = None
        for refine in self.refine:
            below = refine(features.pop(), below, told)
        assert below is not None
        return self.conv_out(F.elu(self.norm_out(below, told)))


class _Told(NamedTuple):
    """What every norm is told: its row of the table, and the class."""

    row: Tensor  # (N,)
    label: Tensor | None


class _Norms(NamedTuple):
    """How many rows every norm has, and the label that it is told."""

    rows: int
    label: Field | None

    def make(self, channels: int) -> _Norm:
        """A norm of that many channels."""
        return _Norm(channels, self)


class _Norm(nn.Module):
    """InstanceNorm++ with a row of γ, α, β for each level."""

    def __init__(self, channels: int, norms: _Norms) -> None:
        super().__init__()
        self.table = nn.Embedding(norms.rows, 3 * channels)
        self.label = LabelEmbedding(norms.label, channels, std=0.02) if norms.label else None
        with torch.no_grad():
            nn.init.normal_(self.table.weight, 1.0, 0.02)
            self.table.weight[:, 2 * channels :].zero_()

    def forward(self, x: Tensor, told: _Told) -> Tensor:
        gamma, alpha, beta = self.table(told.row).chunk(3, dim=1)  # (N, C) each
        if self.label is not None:
            assert told.label is not None, "a network with classes needs a label"
            beta = beta + self.label(told.label)
        n, channels, *sides = x.shape
        mean = x.mean((2, 3))
        variance, m = torch.var_mean(mean, dim=1, keepdim=True)  # over channels, with Bessel's correction as published
        beta = beta + gamma * alpha * (mean - m) * (variance + 1e-5).rsqrt()
        maps = x.reshape(1, n * channels, *sides)  # every map of every item is a channel of its own: one fused kernel
        return F.batch_norm(maps, None, None, gamma.flatten(), beta.flatten(), training=True).reshape(x.shape)


class _Residual(nn.Module):
    """norm → ELU → convolution, twice, and a shortcut; halves the side, or dilates."""

    def __init__(self, inputs: int, outputs: int, norms: _Norms, down: bool = False, dilation: int = 1) -> None:
        super().__init__()
        self.pools = down and dilation == 1
        between = inputs if down else outputs
        self.norm1, self.conv1 = norms.make(inputs), _conv(inputs, between, dilation)
        self.norm2, self.conv2 = norms.make(between), _conv(between, outputs, dilation)
        kernel = _conv(inputs, outputs, dilation) if dilation > 1 else nn.Conv2d(inputs, outputs, 1)
        self.shortcut = kernel if down else nn.Identity()

    def forward(self, x: Tensor, told: _Told) -> Tensor:
        h = self.conv1(F.elu(self.norm1(x, told)))
        h = self.conv2(F.elu(self.norm2(h, told)))
        if self.pools:  # a 1×1 convolution and a mean may change places
            return F.avg_pool2d(h, 2).add_(self.shortcut(F.avg_pool2d(x, 2)))
        return h.add_(self.shortcut(x))


class _Refine(nn.Module):
    """Joins a stage's features with those from below; the deepest has nothing below, the last (`end`) more units."""

    def __init__(self, inputs: int, outputs: int, norms: _Norms | None, deepest: bool, end: bool) -> None:
        super().__init__()
        sources = 1 if deepest else 2
        self.adapt = nn.ModuleList(_Units(inputs, 2, norms) for _ in range(sources))
        joins = 0 if deepest else 2
        self.join_norms = nn.ModuleList(_maybe(norms, inputs) for _ in range(joins))
        self.joins = nn.ModuleList(_conv(inputs, outputs) for _ in range(joins))
        self.pool_norms = nn.ModuleList(_maybe(norms, outputs) for _ in range(2))
        self.pools = nn.ModuleList(_conv(outputs, outputs, bias=False) for _ in range(2))
        self.pool = F.max_pool2d if norms is None else F.avg_pool2d
        self.after = _Units(outputs, 3 if end else 1, norms)

    def forward(self, here: Tensor, below: Tensor | None, told: _Told) -> Tensor:
        paths = [units(h, told) for units, h in zip(self.adapt, (here, below), strict=False)]
        h = self._join(paths, told) if len(paths) == 2 else paths[0]
        h = path = F.elu(h)
        for norm, conv in zip(self.pool_norms, self.pools, strict=True):
            path = conv(self.pool(_normed(norm, path, told), 5, stride=1, padding=2))
            h = h + path
        return self.after(h, told)

    def _join(self, paths: list[Tensor], told: _Told) -> Tensor:
        here, below = (
            conv(_normed(norm, path, told)) for norm, conv, path in zip(self.join_norms, self.joins, paths, strict=True)
        )
        if below.shape != here.shape:
            below = F.interpolate(below, here.shape[2:], mode="bilinear", align_corners=True)
        return here + below


class _Units(nn.Module):
    """Residual units: norm → ELU → convolution, twice."""

    def __init__(self, channels: int, count: int, norms: _Norms | None) -> None:
        super().__init__()
        self.norms = nn.ModuleList(_maybe(norms, channels) for _ in range(2 * count))
        self.convs = nn.ModuleList(_conv(channels, channels, bias=False) for _ in range(2 * count))

    def forward(self, x: Tensor, told: _Told) -> Tensor:
        h = x
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            h = conv(F.elu(_normed(norm, h, told)))
            if i % 2:
                x = h = h + x
        return h


def _maybe(norms: _Norms | None, channels: int) -> nn.Module:
    return nn.Identity() if norms is None else norms.make(channels)


def _normed(norm: nn.Module, h: Tensor, told: _Told) -> Tensor:
    return norm(h, told) if isinstance(norm, _Norm) else h


def _conv(inputs: int, outputs: int, dilation: int = 1, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)
