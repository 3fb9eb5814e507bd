"""Orthonormal matrices in float64 that operators are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def with_first(vector: Tensor) -> Tensor:
    """An orthonormal basis `(D, D)`, one a row, whose first is `vector` `(D,)` at unit length: a Householder reflection."""
    unit = vector / vector.norm()
    first = torch.zeros_like(unit)
    first[0] = 1
    normal = unit - first
    length = normal.square().sum()
    eye = torch.eye(len(unit), dtype=unit.dtype)
    return eye if length < 1e-30 else eye - 2 * torch.outer(normal, normal) / length


def cosines(size: int) -> Tensor:
    """The discrete cosine transform II `(size, size)`, a frequency a row."""
    k = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * k[:, None] * (k + 0.5)) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return rows


def blur(weights: Tensor, size: int) -> Tensor:
    """The matrix `(size, size)` of a convolution with an odd kernel, images continued by their mirror image."""
    reach = len(weights) // 2
    made = torch.zeros(size, size, dtype=torch.float64)
    for row in range(size):
        for offset, weight in enumerate(weights, start=-reach):
            column = (row + offset) % (2 * size)
            made[row, min(column, 2 * size - 1 - column)] += weight
    return made
