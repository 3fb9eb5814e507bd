"""Compressed sensing: some numbers of a scrambled transform are measured (Do, Gan, Nguyen & Tran, 2011).

Offers: linear

    y = P C (d ⊙ x) Cᵀ

d are random signs, C the orthonormal cosine transform of columns and rows, P keeps a random `share` of the coefficients, the
same of every channel: the structurally random matrix, as good as a dense random one and fast. Measurements are `(C, m)`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Field
from gencli.operators._base import LinearOperator
from gencli.operators._transforms import cosines


class CompressedSensing(LinearOperator):
    """Coefficients of a scrambled image."""

    @dataclass(frozen=True)
    class Config:
        share: float = opt(0.25, "of as many numbers as an image has", low=0.001, high=1)

    def __init__(self, config: Config, x: Field) -> None:
        super().__init__(config, x)
        size = self.shape[1] * self.shape[2]
        generator = torch.Generator().manual_seed(0)
        self.signs = torch.randint(2, self.shape[1:], generator=generator).double() * 2 - 1
        self.kept = torch.randperm(size, generator=generator)[: max(1, round(config.share * size))].sort().values
        self.tall, self.wide = cosines(self.shape[1]), cosines(self.shape[2])
        values = torch.zeros(self.shape[0], size, dtype=torch.float64)
        values[:, self.kept] = 1
        self.values = values.flatten()

    def rotate(self, x: Tensor) -> Tensor:
        return (self.tall.to(x) @ (x * self.signs.to(x)) @ self.wide.mT.to(x)).flatten(1)

    def back(self, c: Tensor) -> Tensor:
        return (self.tall.mT.to(c) @ c.view(-1, *self.shape) @ self.wide.to(c)) * self.signs.to(c)

    def lift(self, c: Tensor) -> Tensor:
        return c.view(len(c), self.shape[0], -1)[..., self.kept.to(c.device)]

    def lower(self, y: Tensor) -> Tensor:
        made = y.new_zeros(len(y), self.shape[0], self.shape[1] * self.shape[2])
        return made.index_copy(2, self.kept.to(y.device), y).flatten(1)
