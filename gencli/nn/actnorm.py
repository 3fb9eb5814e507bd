"""Activation normalisation (Glow, arXiv:1807.03039): a shift and a scale for each channel, set once by the data.

    y = (x + b) exp(3 l),      log |det| = 3 H W Σ l      of images, 3 Σ l of rows

At first b and l give the first batch mean 0 and deviation 1 in every channel; from then on they are parameters like others, so
that no item depends on its batch. The factor 3 is the released code's: it makes l learn faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

FACTOR = 3.0
FIRST = 256  # items that set the normalisations


class ActNorm(nn.Module):
    """For images `(N, C, H, W)` and rows `(N, C)`."""

    fitting = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor, among: Tensor | None = None) -> Tensor:
        """y; `volume` is its log-determinant. `among` has ones where x counts for what is set first, all by default."""
        if self.fitting:
            self._fit(x.detach(), torch.ones_like(x[0]) if among is None else among.expand(x.shape[1:]))
        return (x + _like(self.bias, x)) * self.log_slope(x).exp()

    def after(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and bias of this after a linear map `(C, …)` without a bias: one pass over x instead of three."""
        slope = (FACTOR * self.log_scale).exp()
        return weight * slope.view(-1, *[1] * (weight.ndim - 1)), (self.bias * slope).flatten()

    def before(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weights and bias of this before a linear map `(out, C)`."""
        slope = (FACTOR * self.log_scale).exp().flatten()
        made = weight * slope
        return made, made @ self.bias.flatten()

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-self.log_slope(y)).exp() - _like(self.bias, y)

    def log_slope(self, x: Tensor) -> Tensor:
        """log dy/dx, to be broadcast over x."""
        return FACTOR * _like(self.log_scale, x)

    def volume(self, x: Tensor) -> Tensor:
        """log |det dy/dx| `()`, the same for every item in the shape of x."""
        return FACTOR * self.log_scale.sum() * x.shape[2:].numel()

    @torch.no_grad()
    def _fit(self, x: Tensor, weight: Tensor) -> None:
        over = [0, *range(2, x.ndim)]
        count = len(x) * weight.flatten(1).sum(1) if x.ndim > 2 else len(x) * weight
        mean = (x * weight).sum(over) / count
        apart = (x - mean.view(-1, *[1] * (x.ndim - 2))).square()
        std = ((apart * weight).sum(over) / count).sqrt()
        known = count > 0
        self.bias.copy_(torch.where(known, -mean, 0.0)[:, None, None])
        self.log_scale.copy_(torch.where(known, -(std + 1e-6).log(), 0.0)[:, None, None] / FACTOR)


def _like(value: Tensor, x: Tensor) -> Tensor:
    """`(C, 1, 1)` to be broadcast over `(N, C, …)`."""
    return value if x.ndim == 4 else value.view(-1, *[1] * (x.ndim - 2))


@contextmanager
def fitted(module: nn.Module) -> Iterator[None]:
    """Inside, a forward pass sets every normalisation of `module` by what reaches it."""
    norms = [one for one in module.modules() if isinstance(one, ActNorm)]
    for norm in norms:
        norm.fitting = True
    try:
        yield
    finally:
        for norm in norms:
            norm.fitting = False
