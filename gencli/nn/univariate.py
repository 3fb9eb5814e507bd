"""Rising functions of one number, whose parameters a network makes of other numbers.

    Shift    y = x + t                     (NICE: Dinh et al., arXiv:1410.8516)
    Affine   y = (x − μ) e^{−α}            (MAF: Papamakarios et al., arXiv:1705.07057)
    Gate     y = σ(s) x + (1 − σ(s)) m     (IAF: Kingma et al., arXiv:1606.04934)

x has any shape, parameters one dimension more, `(…, numbers)`; both directions give log dy/dx or log dx/dy in the shape of x.
A parameter of zero does nothing, but for the gate: as its authors advise it begins nearly open, at σ(s + 2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F


class Univariate(ABC):
    """A family of rising functions with `numbers` parameters each."""

    numbers: int

    @abstractmethod
    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """y and log dy/dx."""

    @abstractmethod
    def inverse(self, y: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        """x and log dx/dy."""


class Shift(Univariate):
    numbers = 1

    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        return x + given[..., 0], torch.zeros_like(x)

    def inverse(self, y: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        return y - given[..., 0], torch.zeros_like(y)


class Affine(Univariate):
    numbers = 2

    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = given.unbind(-1)
        return (x - mean) * (-log_scale).exp(), -log_scale

    def inverse(self, y: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = given.unbind(-1)
        return y * log_scale.exp() + mean, log_scale


class Gate(Univariate):
    numbers = 2
    open = 2.0

    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = given[..., 0], given[..., 1] + self.open
        return raw.sigmoid() * x + (-raw).sigmoid() * mean, F.logsigmoid(raw)

    def inverse(self, y: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = given[..., 0], given[..., 1] + self.open
        return (y - (-raw).sigmoid() * mean) / raw.sigmoid(), -F.logsigmoid(raw)
