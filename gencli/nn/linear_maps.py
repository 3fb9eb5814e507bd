"""Invertible linear maps of rows `(N, D)` whose log-determinants cost D additions.

    Scaling   y = exp(s) ⊙ x + b
    LU        y = P L (U + diag σ exp(s)) x + b,  P a fixed permutation, L unit lower, U strictly upper (arXiv:1807.03039)
    QR        y = Q R x + b,  Q a product of D Householder reflections, R upper triangular, its diagonal exp(s)

    log |det| = Σ s

LU begins as a random rotation, with its signs σ fixed from then on; QR and scaling as a rotation or the identity. Inverses are
triangular solves. `PerPixel` applies a map to the channels of every pixel of a flattened image: a 1×1 convolution.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from gencli.nn.bijection import Bijection


class Scaling(Bijection):
    """A factor and a shift for each number; the identity at first."""

    def __init__(self, dim: int, shift: bool = True) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim)) if shift else None

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = x * self.log_scale.exp()
        return y if self.bias is None else y + self.bias, self.log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = y if self.bias is None else y - self.bias
        return x * (-self.log_scale).exp(), -self.log_scale.sum().expand(len(y))


class _Dense(Bijection):
    """y = W x + b with log |det W| = Σ s."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    @abstractmethod
    def weight(self) -> Tensor:
        """W `(D, D)`."""

    @abstractmethod
    def solve(self, y: Tensor) -> Tensor:
        """W⁻¹ y for columns `(D, N)`."""

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return x @ self.weight().T + self.bias, self.log_scale.sum().expand(len(x))

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.solve((y - self.bias).T).T, -self.log_scale.sum().expand(len(y))


class LU(_Dense):
    order: Tensor
    signs: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        rotation = nn.init.orthogonal_(torch.empty(dim, dim))
        swaps, lower, upper = torch.linalg.lu(rotation)
        self.lower, self.upper = nn.Parameter(lower.tril(-1)), nn.Parameter(upper.triu(1))
        self.register_buffer("order", swaps.argmax(1))
        self.register_buffer("signs", upper.diagonal().sign())
        with torch.no_grad():
            self.log_scale.copy_(upper.diagonal().abs().log())

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U + diag."""
        eye = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        return self.lower.tril(-1) + eye, self.upper.triu(1) + torch.diag(self.signs * self.log_scale.exp())

    def weight(self) -> Tensor:
        lower, upper = self.factors()
        return (lower @ upper)[self.order]

    def solve(self, y: Tensor) -> Tensor:
        lower, upper = self.factors()
        halfway = torch.linalg.solve_triangular(lower, y[self.order.argsort()], upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, halfway, upper=True)


class QR(_Dense):
    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.normals = nn.Parameter(nn.init.normal_(torch.empty(dim, dim)))
        self.upper = nn.Parameter(torch.zeros(dim, dim))

    def rotation(self) -> Tensor:
        """Q."""
        made = torch.eye(len(self.bias), dtype=self.bias.dtype, device=self.bias.device)
        for normal in self.normals:
            made = made - torch.outer(made @ normal, 2 * normal / normal.square().sum())
        return made

    def triangle(self) -> Tensor:
        """R."""
        return self.upper.triu(1) + torch.diag(self.log_scale.exp())

    def weight(self) -> Tensor:
        return self.rotation() @ self.triangle()

    def solve(self, y: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.triangle(), self.rotation().T @ y, upper=True)


class PerPixel(Bijection):
    """The same map of the channels at every pixel of images `(N, C · H · W)`."""

    def __init__(self, inner: Bijection, channels: int) -> None:
        super().__init__()
        self.inner, self.channels = inner, channels

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y, log_det = self.inner(self._rows(x))
        return self._images(y, len(x)), log_det.view(len(x), -1).sum(1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, log_det = self.inner.inverse(self._rows(y))
        return self._images(x, len(y)), log_det.view(len(y), -1).sum(1)

    def _rows(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.channels, -1)).movedim(1, 2).flatten(0, 1)

    def _images(self, x: Tensor, n: int) -> Tensor:
        return x.unflatten(0, (n, -1)).movedim(2, 1).flatten(1)
