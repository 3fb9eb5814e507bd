"""The cells of NVAE (Vahdat & Kautz, arXiv:2007.03898): residual, with swish and squeeze-and-excitation.

    encoder cell   h + 0.1 SE(conv(swish(BN(conv(swish(BN(h)))))))                                     3×3 convolutions
    decoder cell   h + 0.1 SE(BN(conv1×1(swish(BN(depthwise5×5(swish(BN(conv1×1(BN(h)))))))))          six times as wide inside

A cell may halve the side and double the width (`down`), or double the side and halve the width (`up`). Filters outside the
decoder cells' branches are normalised to a learned length.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.nn.moving_norm import ShiftedNorm

RESIDUAL = 0.1  # of a branch


class FilterConv(nn.Conv2d):
    """A convolution whose filters are exp(l) v / |v|; the length's logarithm l is learned and starts at v's own."""

    def __init__(self, ins: int, outs: int, kernel: int, stride: int = 1, bias: bool = True) -> None:
        super().__init__(ins, outs, kernel, stride, kernel // 2, bias=bias)
        self.log_length = nn.Parameter((self.weight.detach().flatten(1).norm(dim=1) + 1e-2).log())

    def filters(self) -> Tensor:
        """`(outs, ins, k, k)`."""
        length = self.weight.flatten(1).norm(dim=1) + 1e-5
        return self.weight * (self.log_length.exp() / length).view(-1, 1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.filters(), self.bias, self.stride, self.padding)


class Excite(nn.Module):
    """Every map times a gate in (0, 1) that is made of the means of all maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = max(width // 16, 4)
        self.gate = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width), nn.Sigmoid())

    def forward(self, h: Tensor) -> Tensor:
        return h * self.gate(h.mean((2, 3)))[:, :, None, None]


class Halve(nn.Module):
    """A swish, then every second place by four 1×1 convolutions, each of which begins at another corner."""

    def __init__(self, ins: int, outs: int) -> None:
        super().__init__()
        sizes = [outs // 4] * 3 + [outs - 3 * (outs // 4)]
        self.corners = nn.ModuleList(FilterConv(ins, size, 1, stride=2) for size in sizes)

    def forward(self, h: Tensor) -> Tensor:
        h = F.silu(h)
        starts = ((0, 0), (1, 1), (0, 1), (1, 0))
        return torch.cat([conv(h[:, :, a:, b:]) for conv, (a, b) in zip(self.corners, starts, strict=True)], 1)


class Cell(nn.Module):
    """A skip connection and a branch; `change` is `down`, `up` or nothing."""

    def __init__(self, width: int, change: str = "", inner: int = 0) -> None:
        """`inner` makes it a decoder cell, that many times as wide inside; 0 an encoder cell."""
        super().__init__()
        outs = {"": width, "down": 2 * width, "up": width // 2}[change]
        self.skip: nn.Module = nn.Identity()
        if change == "down":
            self.skip = Halve(width, outs)
        elif change == "up":
            larger = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            self.skip = nn.Sequential(larger, FilterConv(width, outs, 1, bias=False))
        make = _separable(width, outs, change, inner) if inner else _plain(width, outs, change)
        self.branch = nn.Sequential(*make, Excite(outs))

    def forward(self, h: Tensor) -> Tensor:
        return self.skip(h) + RESIDUAL * self.branch(h)


def norm_swish(width: int) -> list[nn.Module]:
    """Batch normalisation and swish."""
    return [ShiftedNorm(width, gain=True), nn.SiLU()]


def _plain(ins: int, outs: int, change: str) -> list[nn.Module]:
    first = FilterConv(ins, outs, 3, stride=2 if change == "down" else 1)
    return [*norm_swish(ins), *_doubled(change), first, *norm_swish(outs), FilterConv(outs, outs, 3)]


def _separable(ins: int, outs: int, change: str, inner: int) -> list[nn.Module]:
    wide, stride = inner * ins, 2 if change == "down" else 1
    widen, narrow = nn.Conv2d(ins, wide, 1, bias=False), nn.Conv2d(wide, outs, 1, bias=False)
    apart = nn.Conv2d(wide, wide, 5, stride, 2, groups=wide, bias=False)
    return [
        *_doubled(change),
        *(ShiftedNorm(ins, gain=True), widen, *norm_swish(wide)),
        *(apart, *norm_swish(wide)),
        *(narrow, ShiftedNorm(outs, gain=True)),
    ]


def _doubled(change: str) -> list[nn.Module]:
    return [nn.Upsample(scale_factor=2, mode="nearest")] if change == "up" else []
