"""Activation normalisation (Glow, arXiv:1807.03039): a shift and a scale for each channel, set once by the data.

    y = (x + b) exp(3 l),      log |det| = 3 H W Σ l

At first b and l give the first batch mean 0 and deviation 1 in every channel; from then on they are parameters like others, so
that no item depends on its batch. The factor 3 is the released code's: it makes l learn faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

FACTOR = 3.0


class ActNorm(nn.Module):
    """For images `(N, C, H, W)`."""

    fitting = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """y; `volume` is its log-determinant."""
        if self.fitting:
            self._fit(x.detach())
        return (x + self.bias) * (FACTOR * self.log_scale).exp()

    def inverse(self, y: Tensor) -> Tensor:
        return y * (-FACTOR * self.log_scale).exp() - self.bias

    def volume(self, x: Tensor) -> Tensor:
        """log |det dy/dx| `()`, the same for every item in the shape of x."""
        return FACTOR * self.log_scale.sum() * (x.shape[2] * x.shape[3])

    @torch.no_grad()
    def _fit(self, x: Tensor) -> None:
        std, mean = torch.std_mean(x, dim=(0, 2, 3), correction=0)
        self.bias.copy_(-mean[:, None, None])
        self.log_scale.copy_(-(std + 1e-6).log()[:, None, None] / FACTOR)


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
