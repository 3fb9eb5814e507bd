"""Fully connected layers, from any shape to any shape.

Offers: map

`layers` hidden layers of `width` units, then a linear layer; no hidden layer makes it an affine map. One layer of 500 tanh
units is the encoder and the decoder of Kingma & Welling (arXiv:1312.6114). A class label adds a learned row to what the first
layer makes, as if it stood beside x with one number a class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.nn.embed import LabelEmbedding, label_field

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class Mlp(nn.Module, Component):
    """`(N, *x.shape)` to `(N, *out.shape)`."""

    role: ClassVar[str] = "map"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(500, "units in a hidden layer", low=1)
        layers: int = opt(1, "hidden layers", low=0)
        activation: Literal["tanh", "relu", "gelu", "silu"] = opt("tanh", "nonlinearity after a hidden layer")

    def __init__(self, config: Config, x: Field, out: Field, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.shape = out.shape
        layers: list[nn.Module] = []
        here = x.size
        for _ in range(config.layers):
            layers += [nn.Linear(here, config.width), ACTIVATIONS[config.activation]()]
            here = config.width
        self.body = nn.Sequential(*layers, nn.Linear(here, out.size))
        label, first = label_field(cond or {}, "mlp"), config.width if config.layers else out.size
        self.label = LabelEmbedding(label, first, std=1.0) if label else None

    def forward(self, x: Tensor, **cond: Tensor) -> Tensor:
        if self.label is None:
            return self.body(x.flatten(1)).unflatten(1, self.shape)
        first, *rest = self.body
        h = first(x.flatten(1)) + self.label(cond["label"])
        for layer in rest:
            h = layer(h)
        return h.unflatten(1, self.shape)
