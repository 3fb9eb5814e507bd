"""Fully connected layers that tell the class of noisy points, or of any flat data.

Offers: class-logits

`denoising-mlp` on the flattened x, whose outputs are the logits. The last layer starts at zero: every class is equally likely.

Shapes: x `(N, …)` of the field's shape; level `(N,)`, whatever number the model tells; output `(N, classes)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from gencli.config import Component
from gencli.core import Field
from gencli.networks.denoising_mlp import DenoisingMlp


class ClassifierMlp(nn.Module, Component):
    """A classifier of noisy points."""

    role: ClassVar[str] = "classify"

    @dataclass(frozen=True)
    class Config(DenoisingMlp.Config):
        """As in `denoising-mlp`."""

    def __init__(self, config: Config, x: Field, classes: int) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.body = DenoisingMlp(config, Field(x.kind, (x.size,)), classes, {})

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Class logits `(N, classes)` for x at the levels `(N,)`."""
        return self.body(x.flatten(1), level)
