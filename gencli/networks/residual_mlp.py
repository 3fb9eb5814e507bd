"""Neural Spline Flows: the residual network of couplings (Durkan et al., 2019). arXiv:1906.04032

Offers: map

A linear layer, `blocks` residual blocks h + L(a(L(a(h)))) with a = relu, and a linear layer. As in the authors' code without
batch normalisation and dropout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field


class ResidualMlp(nn.Module, Component):
    """`(N, *x.shape)` to `(N, *out.shape)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(32, "units in a layer", low=1)
        blocks: int = opt(2, "residual blocks", low=1)

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.shape = out.shape
        self.first = nn.Linear(x.size, config.width)
        self.blocks = nn.ModuleList(_block(config.width) for _ in range(config.blocks))
        self.last = nn.Linear(config.width, out.size)

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        for block in self.blocks:
            h = h + block(h)
        return self.last(h).unflatten(1, self.shape)


def _block(width: int) -> nn.Module:
    return nn.Sequential(nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
