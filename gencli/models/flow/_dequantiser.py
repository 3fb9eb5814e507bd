"""Variational dequantisation (Flow++: Ho et al., arXiv:1902.00275, section 3.1): noise in a grey level's bin that fits it.

    log P(k) ≥ E_q[log p((k + u) / V) − log q(u | k)] + const,   u = g(ε; k) ∈ (0, 1)^D,   ε ~ U(0, 1)^D

The codec has drawn ε already: its x is (k + ε) / V. So g is a bijection of every bin of grey levels to itself, x to
x' = (k + g(ε; k)) / V, and the flow behind it takes x' as data: log p(x') + log |det dx'/dx| is the bound of one draw, and all
that a flow offers (its inverse, its volume, its stages) holds for the two together. At first g is the identity, which is
uniform dequantisation. g is a chain of couplings of the two colours of a checkerboard, each number of one colour moved by a
rising spline of its bin, whose parameters a network makes of the other colour, of k and of the board.

Paper: couplings of mixtures of logistics between a logit and a sigmoid, gated convolutions and attention. Ours:
rational-quadratic splines of `BINS` bins (`nn/spline.py`), which need neither and have an exact inverse; networks as in Glow.
What lies outside all bins, as a sample of the flow may, stays. An x' that rounding moves over a bin's edge is undone with the
neighbour's level, which its neighbours' splines are told.

Raises GencliError for data without grey levels, and for what is no image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gencli.config import opt
from gencli.core import Field, Rng
from gencli.errors import GencliError
from gencli.networks.glow_net import GlowNet
from gencli.nn.spline import Spline

COUPLINGS, BINS = 4, 8


@dataclass(frozen=True)
class Dequantisation:
    """Settings of every flow."""

    dequantiser: Literal["uniform", "variational"] = opt(
        "uniform", "noise within the grey levels of images: even, or learned with the flow"
    )
    dequantiser_width: int = opt(32, "channels of a learned dequantiser's networks", low=1)


def levels_of(field: Field) -> int:
    """How many grey levels the data have; data without any have no bins."""
    assert field.vocab is not None and field.range is not None
    return field.vocab


def level_and_noise(x: Tensor, field: Field) -> tuple[Tensor, Tensor]:
    """Grey levels 0 … V − 1, and where in its bin, from 0 to 1, a number of the data's range lies."""
    low, high = field.range or (0.0, 1.0)
    place = (_wide(x) - low) * (levels_of(field) / (high - low))
    level = place.detach().floor().clamp(0, levels_of(field) - 1)
    return level.to(x), (place - level).to(x)


def placed(level: Tensor, noise: Tensor, field: Field) -> Tensor:
    """The inverse of `level_and_noise`."""
    low, high = field.range or (0.0, 1.0)
    return (low + (_wide(level) + _wide(noise)) * ((high - low) / levels_of(field))).to(noise)


def redrawn(x: Tensor, field: Field, rng: Rng) -> Tensor:
    """The same grey levels with other noise, drawn evenly as the codec draws it."""
    level, _ = level_and_noise(x, field)
    noise = rng.uniform(x.shape, torch.float64).to(x.device, _wide(x).dtype)
    return placed(_wide(level), noise.clamp(_edge(field), 1 - _edge(field)), field).to(x)


def _edge(field: Field) -> float:
    """How far the codec keeps from a bin's edges, so that no rounding to float32 leaves the bin."""
    return levels_of(field) * 2.0**-24


def _wide(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()


class Dequantiser(nn.Module):
    """The bijection of bins, for images in their data's range."""

    board: Tensor

    def __init__(self, field: Field, width: int, method: str) -> None:
        super().__init__()
        if len(field.shape) != 3 or field.vocab is None or field.range is None:
            raise GencliError(
                f"--dequantiser variational learns noise of grey levels, the data of {method} are {field.kind} of shape "
                f"{field.shape} without any",
                "leave --dequantiser out, or use images",
            )
        self.field = field
        channels, *sides = field.shape
        seen = Field("dequantiser", (2 * channels + 1, *sides))
        self.spline = Spline(BINS, 1.0)
        made = Field("dequantiser", (channels * self.spline.numbers, *sides))
        self.nets: Any = nn.ModuleList(GlowNet(GlowNet.Config(width), seen, made) for _ in range(COUPLINGS))
        rows, columns = (torch.arange(side) for side in sides)
        self.register_buffer("board", ((rows[:, None] + columns) % 2).float(), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x' and log |det dx'/dx| `(N,)`."""
        level, noise = level_and_noise(x, self.field)
        v, total = 2 * noise - 1, x.new_zeros(len(x))
        for i in range(COUPLINGS):
            moves, given = self._coupling(i, v, level)
            made, log_slope = self.spline.forward(v, given)
            v = torch.where(moves, made, v)
            total = total + torch.where(moves, log_slope, 0.0).flatten(1).sum(1)
        return placed(level, (v + 1) / 2, self.field), total

    def inverse(self, x: Tensor) -> Tensor:
        """x from x'; what lies in no bin stays."""
        level, noise = level_and_noise(x, self.field)
        v = 2 * noise - 1
        for i in reversed(range(COUPLINGS)):
            moves, given = self._coupling(i, v, level)
            v = torch.where(moves, self.spline.inverse(v, given)[0], v)
        return placed(level, (v + 1) / 2, self.field)

    def _coupling(self, i: int, v: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Which numbers move, and their splines' parameters `(N, C, H, W, numbers)`."""
        moves, net = (self.board == i % 2).expand_as(v), self.nets[i]
        grey = level * (2 / (levels_of(self.field) - 1)) - 1
        seen = torch.cat([torch.where(moves, 0.0, v.clamp(-1, 1)), grey, moves[:, :1].to(v)], dim=1)
        made = net(seen.to(net.last.conv.weight)).to(v)
        return moves, made.unflatten(1, (v.shape[1], -1)).movedim(2, -1)
