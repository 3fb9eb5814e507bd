"""FFJORD: the network of its vector field (Grathwohl et al., 2018). arXiv:1810.01367

Offers: denoise

Layers with softplus between, each of which is told the time t, with nothing after the last:

    concat        h ← W [h, t] + b                            t as one more number, or one more channel of images
    concatsquash  h ← (W h + b) ⊙ sigmoid(a t + c) + d t      a, c, d one number an output or channel

Images `(N, C, H, W)` have 3×3 convolutions of stride 1, all else fully connected layers. The paper's images have three hidden
layers of 64 channels with concat, its points three of 64 units with concatsquash. A class label adds a learned row to what
the first layer makes. Ours: the label; tanh as another nonlinearity.

Shapes: x `(N, *shape)`, t `(N,)`; output like x, its first dimension being `out`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field, as_rows
from gencli.nn.embed import LabelEmbedding, label_field

ACTIVATIONS: dict[str, type[nn.Module]] = {"softplus": nn.Softplus, "tanh": nn.Tanh}


class OdeNet(nn.Module, Component):
    """dx/dt from x and t."""

    role: ClassVar[str] = "denoise"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(64, "units or channels of a hidden layer", low=1)
        layers: int = opt(3, "hidden layers", low=0)
        time: Literal["concat", "concatsquash"] = opt("concat", "how a layer is told the time")
        activation: Literal["softplus", "tanh"] = opt("softplus", "nonlinearity; it must be smooth")

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config, self.flat = config, len(x.shape) != 3
        self.shape = (out, *x.shape[1:])
        ins, outs = (x.size, Field("", self.shape).size) if self.flat else (x.shape[0], out)
        sizes = [ins, *[config.width] * config.layers, outs]
        layer = Concat if config.time == "concat" else ConcatSquash
        self.body: Any = nn.ModuleList(layer(a, b, self.flat) for a, b in pairwise(sizes))
        self.act = ACTIVATIONS[config.activation]()
        label = label_field(cond, "ode-net")
        self.label = LabelEmbedding(label, sizes[1], std=1.0) if label else None

    def forward(self, x: Tensor, level: Tensor, **cond: Tensor) -> Tensor:
        """The field at x and the times `(N,)`."""
        h = x.flatten(1) if self.flat else x
        time = as_rows(level, h).to(h)
        for i, layer in enumerate(self.body):
            h = layer(h, time)
            if i == 0 and self.label is not None:
                h = h + _over(self.label(cond["label"]), h)
            if i + 1 < len(self.body):
                h = self.act(h)
        return h.unflatten(1, self.shape) if self.flat else h


def _layer(ins: int, outs: int, flat: bool) -> nn.Module:
    return nn.Linear(ins, outs) if flat else nn.Conv2d(ins, outs, 3, padding=1)


class Concat(nn.Module):
    """A layer that sees the time as one more number of every place; the first of what it sees."""

    def __init__(self, ins: int, outs: int, flat: bool) -> None:
        super().__init__()
        self.layer = _layer(ins + 1, outs, flat)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.layer(torch.cat([time.expand(len(x), 1, *x.shape[2:]), x], dim=1))


class ConcatSquash(nn.Module):
    """A layer whose outputs the time scales and shifts."""

    def __init__(self, ins: int, outs: int, flat: bool) -> None:
        super().__init__()
        self.layer = _layer(ins, outs, flat)
        self.gate, self.shift = nn.Linear(1, outs), nn.Linear(1, outs, bias=False)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        made, t = self.layer(x), time.flatten(1)
        return made * _over(self.gate(t).sigmoid(), made) + _over(self.shift(t), made)


def _over(row: Tensor, like: Tensor) -> Tensor:
    """Numbers of each channel `(N, C)` for every place of `like` `(N, C, …)`."""
    return row.reshape(*row.shape, *[1] * (like.ndim - 2))
