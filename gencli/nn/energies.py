"""Unnormalised densities p ∝ exp(−U) of the plane, to fit by reverse KL (Rezende & Mohamed, arXiv:1505.05770, table 1).

    U1   ½ ((‖z‖ − 2) / 0.4)² − log (exp(−½ ((z₁ − 2) / 0.6)²) + exp(−½ ((z₁ + 2) / 0.6)²))
    U2   ½ ((z₂ − w₁) / 0.4)²
    U3   −log (exp(−½ ((z₂ − w₁) / 0.35)²) + exp(−½ ((z₂ − w₁ + w₂) / 0.35)²))
    U4   −log (exp(−½ ((z₂ − w₁) / 0.4)²) + exp(−½ ((z₂ − w₁ + w₃) / 0.35)²))

    w₁ = sin(2π z₁ / 4),   w₂ = 3 exp(−½ ((z₁ − 1) / 0.6)²),   w₃ = 3 σ((z₁ − 1) / 0.3)

Ours: U2 to U4 have infinite mass as they stand, so ½ (max(|z₁| − 4, 0) / 0.4)² is added, which leaves the square of the
paper's figures as it is. `two` are two Gaussians at (±2, 0) of deviation ½. Of all the logarithm of ∫ exp(−U) is known, by
quadrature, so that KL divergences are exact: log q − log p = log q + U + log mass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

EnergyName = Literal["u1", "u2", "u3", "u4", "two"]
REACH = 7.0  # outside [−REACH, REACH]² there is no mass that float64 could tell


class Energy(NamedTuple):
    """U of points `(N, 2)`, `(N,)`, and log ∫ exp(−U)."""

    at: Callable[[Tensor], Tensor]
    log_mass: float

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z) `(N,)`, normalised."""
        return -self.at(z) - self.log_mass


def _bell(z: Tensor, spread: float) -> Tensor:
    return -0.5 * (z / spread).square()


def _wave(z: Tensor) -> Tensor:
    return torch.sin(math.pi / 2 * z[:, 0])


def _wall(z: Tensor) -> Tensor:
    return -_bell(F.relu(z[:, 0].abs() - 4), 0.4)


def _u1(z: Tensor) -> Tensor:
    ring = _bell(z.norm(dim=1) - 2, 0.4)
    return -ring - torch.logaddexp(_bell(z[:, 0] - 2, 0.6), _bell(z[:, 0] + 2, 0.6))


def _u2(z: Tensor) -> Tensor:
    return _wall(z) - _bell(z[:, 1] - _wave(z), 0.4)


def _u3(z: Tensor) -> Tensor:
    apart, bump = z[:, 1] - _wave(z), 3 * _bell(z[:, 0] - 1, 0.6).exp()
    return _wall(z) - torch.logaddexp(_bell(apart, 0.35), _bell(apart + bump, 0.35))


def _u4(z: Tensor) -> Tensor:
    apart, step = z[:, 1] - _wave(z), 3 * ((z[:, 0] - 1) / 0.3).sigmoid()
    return _wall(z) - torch.logaddexp(_bell(apart, 0.4), _bell(apart + step, 0.35))


def _two(z: Tensor) -> Tensor:
    spot = torch.tensor([2.0, 0.0], dtype=z.dtype, device=z.device)
    return -torch.logaddexp(*(_bell(z - place, 0.5).sum(1) for place in (spot, -spot)))


ENERGIES: dict[str, Energy] = {
    "u1": Energy(_u1, 1.8775016),
    "u2": Energy(_u2, 2.2001669),
    "u3": Energy(_u3, 2.7597827),
    "u4": Energy(_u4, 2.8287756),
    "two": Energy(_two, math.log(math.pi)),
}
