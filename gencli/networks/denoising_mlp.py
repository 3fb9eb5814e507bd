"""Fully connected layers that are told a noise level, for points in a plane or any flat data.

Offers: denoise

    h ← h + W₂ φ((1 + a) ⊙ W₁ h + b),   (a, b) of each of the `layers` blocks linear in c = φ(level's features) + label

Levels come in many units: an index 0 … 999, a time in [0, 1], ¼ log σ, or σ itself. The features are sines and cosines
of the level at slow frequencies (1 to 10⁻⁴: indices), of u = sign(level) log(1 + |level|) at fast ones (¼ to 32: small
numbers and, since u grows slowly, large ones too), and u as it is; so no setting says which unit it is.

Ours: all of it. The last layer starts at zero; a class label is embedded (`vocab` rows and one for "no class"),
and a `number` (guided-distillation, ctm) or a `latent` (ddgan) added to it.

Shapes: x `(N, C, …)` of the field's shape, of which only the first dimension changes: output `(N, out, …)`; level
`(N,)`. `residuals` `(N, width)` are added to the hidden units after each of the first blocks.

Errors: a condition that is not a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks.mlp import ACTIVATIONS
from gencli.nn.embed import LabelEmbedding, LatentEmbedding, NumberEmbedding, label_field, sinusoidal
from gencli.nn.film import film

FREQUENCIES = 16  # of each kind
SLOWEST, FASTEST = 0.25, 32.0  # radians for one unit of u


class DenoisingMlp(nn.Module, Component):
    """A residual perceptron whose hidden units the level scales and shifts."""

    role: ClassVar[str] = "denoise"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "units in a hidden layer", low=1)
        layers: int = opt(3, "residual blocks, of two layers each", low=1)
        activation: Literal["tanh", "relu", "gelu", "silu"] = opt("silu", "nonlinearity")

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config, self.shape = config, (out, *x.shape[1:])
        label, width = label_field(cond, "denoising-mlp", also=("number", "latent")), config.width
        self.act = ACTIVATIONS[config.activation]()
        self.level = nn.Sequential(nn.Linear(4 * FREQUENCIES + 1, width), self.act, nn.Linear(width, width))
        self.label = LabelEmbedding(label, width, std=1.0) if label else None
        self.number = NumberEmbedding(width) if "number" in cond else None
        self.latent = LatentEmbedding(cond["latent"], width) if "latent" in cond else None
        self.modulation = nn.Linear(width, 2 * width * config.layers)
        self.inputs = nn.Linear(x.size, width)
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(config.layers))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(config.layers))
        self.last = nn.Linear(width, Field("", self.shape).size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Tensor, level: Tensor, residuals: Sequence[Tensor] | None = None, **cond: Tensor) -> Tensor:
        """The network's output `(N, out, …)` for x at the levels `(N,)`."""
        assert residuals is None or len(residuals) <= len(self.up), f"at most {len(self.up)} residuals"
        c = self.level(features(level).to(self.inputs.weight.dtype))
        c = c if self.number is None else c + self.number(cond["number"])
        c = c if self.latent is None else c + self.latent(cond["latent"])
        c = self.act(c if self.label is None else c + self.label(cond["label"]))
        scales, shifts = self.modulation(c).chunk(2, dim=1)
        h = self.inputs(x.flatten(1))
        blocks = zip(self.up, self.down, scales.chunk(len(self.up), 1), shifts.chunk(len(self.up), 1), strict=True)
        for i, (up, down, scale, shift) in enumerate(blocks):
            h = h + down(self.act(film(up(h), 1 + scale, shift)))
            if residuals is not None and i < len(residuals):
                h = h + residuals[i]
        return self.last(self.act(h)).unflatten(1, self.shape)


def features(level: Tensor) -> Tensor:
    """`(N,)` to `(N, 65)`: what distinguishes levels of any unit, each within [−1, 1] but the last, u/4."""
    wide = level if level.dtype == torch.float64 else level.float()
    u = wide.sign() * wide.abs().log1p()
    fast = sinusoidal(FASTEST * u, 2 * FREQUENCIES, period=FASTEST / SLOWEST)
    return torch.cat([sinusoidal(wide, 2 * FREQUENCIES), fast, u[:, None] / 4], dim=1)
