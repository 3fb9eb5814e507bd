"""Invertible maps of rows that know their log-determinants, and how they are joined.

A bijection maps x `(N, D)` to y `(N, D)` and back; a context `(N, C)` may set its numbers for each row. Both directions give
log |det| of the map they make, `(N,)`, so that those of a round trip add up to zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from gencli.nn.moving_norm import MovingNorm


class Bijection(nn.Module, ABC):
    """x to y, and back."""

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """y `(N, D)` and log |det dy/dx| `(N,)`."""

    @abstractmethod
    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x `(N, D)` and log |det dx/dy| `(N,)`."""


class Chain(Bijection):
    """One bijection after the other, the first one first; without any it is the identity."""

    def __init__(self, bijections: Iterable[Bijection]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(bijections)

    def __iter__(self) -> Iterator[Bijection]:
        return iter(self.layers)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.layers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for layer in self:
            x, log_det = layer(x, context)
            total = total + log_det
        return x, total

    def unfold(self, y: Tensor, context: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """y with one more bijection undone at a time, and the log-determinant of the way to it; x last."""
        total = y.new_zeros(len(y))
        for layer in reversed(list(self)):
            y, log_det = layer.inverse(y, context)
            total = total + log_det
            yield y, total

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        *_, made = [(y, y.new_zeros(len(y))), *self.unfold(y, context)]
        return made


class Inverse(Bijection):
    """A bijection turned round."""

    def __init__(self, bijection: Bijection) -> None:
        super().__init__()
        self.inner = bijection

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner.inverse(x, context)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.inner(y, context)


class Permutation(Bijection):
    """y_i = x_{order[i]}, fixed; its volume is kept."""

    order: Tensor

    def __init__(self, order: Tensor) -> None:
        super().__init__()
        self.register_buffer("order", order)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x[:, self.order], x.new_zeros(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return y[:, self.order.argsort()], y.new_zeros(len(y))


class Reversal(Permutation):
    """The same numbers from the last to the first."""

    def __init__(self, dim: int) -> None:
        super().__init__(torch.arange(dim).flip(0))


class Normalisation(Bijection):
    """y = exp(γ) ⊙ (x − m) / √v + β: batch normalisation, whose slope counts (Dinh et al., arXiv:1605.08803, section 3.7).

    m and v are the batch's in training, running averages in evaluation; `inverse` is for evaluation only. A model that has
    one calls `nn.moving_norm.settle` after every step.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = MovingNorm(dim)
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        mean, var = self.norm.moments(x)
        log_slope = self.log_scale - 0.5 * var.log()
        return (x - mean) * log_slope.exp() + self.bias, log_slope.sum().expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert not self.training, "a batch's statistics are known only on the way there: call eval() first"
        mean, var = self.norm.moments(y)
        log_slope = self.log_scale - 0.5 * var.log()
        return (y - self.bias) * (-log_slope).exp() + mean, -log_slope.sum().expand(len(y))
