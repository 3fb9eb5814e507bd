"""Embeddings of noise levels, classes and positions."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from gencli.core import Field
from gencli.errors import GencliError


def sinusoidal(
    level: Tensor, width: int, *, order: Literal["sin", "cos"] = "sin", endpoint: bool = True, period: float = 10_000.0
) -> Tensor:
    """`(N,)` to `(N, width)`: sines and cosines of the level at geometrically spaced frequencies.

    Args:
        level: any float; kept at least in float32.
        width: of the embedding; an odd one gets a zero at its end.
        order: which half comes first: `sin` in DDPM, `cos` in DiT.
        endpoint: whether the lowest frequency is exactly 1/period (DDPM) or one step above it (DiT).
        period: of the slowest wave, over 2π.
    """
    half = width // 2
    slots = max(half - 1, 1) if endpoint else half
    wide = level if level.dtype == torch.float64 else level.float()
    index = torch.arange(half, device=level.device, dtype=wide.dtype)
    angle = wide[:, None] * torch.exp(-math.log(period) / slots * index)  # (N, width / 2)
    halves = (angle.sin(), angle.cos()) if order == "sin" else (angle.cos(), angle.sin())
    return nn.functional.pad(torch.cat(halves, dim=-1), (0, width % 2))


def sincos_grid(width: int, rows: int, columns: int) -> Tensor:
    """`(rows * columns, width)`: fixed positions of a grid, half of the width for the column, then half for the row."""
    assert width % 4 == 0, f"positions on a grid need a width divisible by 4, got {width}"
    y, x = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    parts = [sinusoidal(axis.flatten(), width // 2, endpoint=False) for axis in (x, y)]
    return torch.cat(parts, dim=-1).float()


class LabelEmbedding(nn.Embedding):
    """One row a class, and a last one (index `vocab`) for "no class"."""

    def __init__(self, field: Field, width: int, std: float) -> None:
        assert field.vocab is not None, "a label needs a vocab"
        super().__init__(field.vocab + 1, width)
        nn.init.normal_(self.weight, std=std)


class NumberEmbedding(nn.Linear):
    """A number `(N, 1)` of −25 to 25 or so by sines and cosines, what a student is told besides; starts at zero."""

    WAVES, FASTEST, SLOWEST = 32, 8.0, 0.0625  # radians for a unit

    def __init__(self, width: int) -> None:
        super().__init__(self.WAVES, width, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, number: Tensor) -> Tensor:
        waves = sinusoidal(self.FASTEST * number.flatten(), self.WAVES, period=self.FASTEST / self.SLOWEST)
        return super().forward(waves.to(self.weight.dtype))


class LatentEmbedding(nn.Sequential):
    """A generator's latent `(N, numbers)`, scaled to a mean square of 1, through three layers with swish between them."""

    def __init__(self, latent: Field, width: int) -> None:
        first, second, third = (nn.Linear(inputs, width) for inputs in (latent.size, width, width))
        super().__init__(first, nn.SiLU(), second, nn.SiLU(), third)
        for layer in (first, second, third):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, latent: Tensor) -> Tensor:
        sized = latent * (latent.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        return super().forward(sized.to(next(self.parameters()).dtype))


def label_field(cond: Mapping[str, Field], network: str, also: Collection[str] = ()) -> Field | None:
    """The label among the conditions; a condition that the network cannot take is refused by name.

    Args:
        cond: the conditions' fields.
        network: what to call the network.
        also: keys of the vectors of numbers that it takes too.
    """
    for key, field in cond.items():
        if key in also and len(field.shape) == 1 and field.vocab is None:
            continue
        if key != "label" or field.shape != () or field.vocab is None:
            raise GencliError(
                f"network {network} cannot take the condition '{key}' ({field.kind} of shape {field.shape})",
                f"{network} takes one class label an item; choose another network or leave '{key}' out of the data",
            )
    return cond.get("label")
