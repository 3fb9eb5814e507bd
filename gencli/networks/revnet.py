"""The Reversible Residual Network: Backpropagation Without Storing Activations (Gomez et al., 2017). arXiv:1707.04585

Offers: class-logits, features

    y₁ = x₁ + F(x₂),  y₂ = x₂ + G(y₁);      x₂ = y₂ − G(y₁),  x₁ = y₁ − F(x₂)

Halves of the channels; F and G are normalisation, relu and a 3×3 convolution, twice. In training only what leaves a row of
such blocks is kept: the backward pass works out each block's input from its output and takes derivatives there, so that
memory does not grow with depth. Where a stage begins, with half the side, a block cannot be undone: its shortcut is the mean
of four pixels with zeros for new channels, and its input is kept. The mean over space is the features.

With stages of 32, 64 and 112 channels and 3 blocks each it is RevNet-38 for ten classes, 448,074 parameters (the paper's
table says 0.46 million). `store` keeps all activations, for comparison. Running statistics are gathered in the forward pass
alone, though a block is computed twice.

Shapes: x `(N, C, H, W)`; features `(N, last width)`; output `(N, classes)`.

Errors: x that is no image, or smaller than 2^(stages − 1) pixels a side; an odd number of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError


class Revnet(nn.Module, Component):
    """A classifier of clean images that keeps few activations."""

    role: ClassVar[str] = "label"

    @dataclass(frozen=True)
    class Config:
        widths: tuple[int, ...] = opt((32, 64, 112), "channels of the stages, each of half the side")
        blocks: int = opt(3, "blocks a stage", low=1)
        store: bool = opt(False, "keep activations for the backward pass instead of working them out again")

    def __init__(self, config: Config, x: Field, classes: int) -> None:
        nn.Module.__init__(self)
        self.config = config
        least = 2 ** (len(config.widths) - 1)
        if len(x.shape) != 3 or min(x.shape[1:]) < least:
            raise GencliError(
                f"revnet classifies images of at least {least} pixels a side, got {x.kind} {x.shape}",
                "choose a data set of images, or fewer --net.widths",
            )
        if any(width < 2 or width % 2 for width in config.widths):
            raise GencliError(f"revnet halves its channels, got widths {list(config.widths)}", "give even --net.widths")
        self.stem = nn.Conv2d(x.shape[0], config.widths[0], 3, padding=1, bias=False)
        self.stages: Any = nn.ModuleList()
        inner = config.widths[0]
        for i, width in enumerate(config.widths):
            down = Pair(inner, width, 2) if i else None
            alike = [Pair(width, width, 1) for _ in range(config.blocks - (i > 0))]
            self.stages.append(Stage(down, alike, config.store))
            inner = width
        self.last = nn.BatchNorm2d(inner)
        self.head = nn.Linear(inner, classes)

    def features(self, x: Tensor) -> Tensor:
        """`(N, D)`: the mean over space of the last stage."""
        h = self.stem(x)
        for stage in self.stages:
            h = stage(h)
        return F.relu(self.last(h)).mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits `(N, classes)`."""
        return self.head(self.features(x))


class Norm(nn.BatchNorm2d):
    """Batch normalisation that gathers statistics only the first time that it sees a batch."""

    again = False

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.again:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
        return super().forward(x)


def residual(inner: int, outer: int, stride: int) -> nn.Sequential:
    """Normalisation, relu and a convolution, twice."""
    layers: list[nn.Module] = []
    for ins, step in ((inner, stride), (outer, 1)):
        conv = nn.Conv2d(ins, outer, 3, stride=step, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [Norm(ins), nn.ReLU(), conv]
    return nn.Sequential(*layers)


class Pair(nn.Module):
    """y₁ = x₁ + F(x₂), y₂ = x₂ + G(y₁) between halves of the channels."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.stride, self.grown = stride, (outer - inner) // 2
        self.f = residual(inner // 2, outer // 2, stride)
        self.g = residual(outer // 2 if stride == 1 else inner // 2, outer // 2, stride)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        made = self._shortcut(first) + self.f(second)
        if self.stride == 1:
            return torch.cat([made, second + self.g(made)], dim=1)
        return torch.cat([made, self._shortcut(second) + self.g(first)], dim=1)

    def _shortcut(self, half: Tensor) -> Tensor:
        if self.stride == 1:
            return half
        return F.pad(F.avg_pool2d(half, self.stride, ceil_mode=True), (0, 0, 0, 0, 0, self.grown))

    def inverse(self, y: Tensor) -> Tensor:
        """x from y, of a block of stride 1."""
        first, second = y.chunk(2, dim=1)
        second = second - self.g(first)
        return torch.cat([first - self.f(second), second], dim=1)


class Stage(nn.Module):
    """A block that cannot be undone, where there is one, and a row of those that can."""

    def __init__(self, down: Pair | None, alike: Sequence[Pair], store: bool) -> None:
        super().__init__()
        self.down, self.alike, self.store = down, nn.ModuleList(alike), store

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.down is None else self.down(x)
        if self.store or not torch.is_grad_enabled():
            for block in self.alike:
                h = block(h)
            return h
        return WorkedOutAgain.apply(h, self.alike, *self.alike.parameters())


class WorkedOutAgain(torch.autograd.Function):
    """A row of blocks of which only the output is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, blocks: nn.ModuleList, *weights: Tensor) -> Tensor:
        ctx.blocks = blocks
        ctx.cast = {
            "device_type": x.device.type,
            "enabled": torch.is_autocast_enabled(x.device.type),
            "dtype": torch.get_autocast_dtype(x.device.type),
        }
        for block in blocks:
            x = block(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (y,), (grad,) = ctx.saved_tensors, grads
        norms = [module for module in ctx.blocks.modules() if isinstance(module, Norm)]
        found: list[Tensor] = []
        for norm in norms:
            norm.again = True
        try:
            for block in reversed(ctx.blocks):
                weights = list(block.parameters())
                with torch.autocast(**ctx.cast):
                    with torch.no_grad():
                        x = block.inverse(y)
                    with torch.enable_grad():
                        x.requires_grad_()
                        made = block(x)
                grad, *of_weights = torch.autograd.grad(made, [x, *weights], grad)
                found[:0] = of_weights
                y = x.detach()
        finally:
            for norm in norms:
                norm.again = False
        return grad, None, *found
