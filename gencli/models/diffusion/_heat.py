"""The heat equation on an image with insulated borders, as a matrix for each side: F(τ) = Vᵀ exp(−Λ τ) V.

V is the cosine transform. A Gaussian of standard deviation s has τ = s² / 2. Blurs compose, F(τ) F(τ') = F(τ + τ'), keep the
mean, and F(0) = I. All of it is float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gencli.core import full_precision


def cosines(side: int) -> Tensor:
    """V `(side, side)`, orthonormal: the i-th row is the cosine of i half waves (DCT-II)."""
    wave = torch.arange(side, dtype=torch.float64)
    made = torch.cos(wave[:, None] * (wave + 0.5) * (math.pi / side)) * math.sqrt(2 / side)
    made[0] /= math.sqrt(2)
    return made


def decay(side: int, stds: Tensor) -> Tensor:
    """exp(−Λ τ) `(K, side)`: what a blur by each of `stds` `(K,)` leaves of each cosine."""
    rates = (torch.arange(side, dtype=torch.float64) * (math.pi / side)) ** 2
    return torch.exp(-rates * stds.double()[:, None] ** 2 / 2)


def blurs(side: int, stds: Tensor) -> Tensor:
    """F `(K, side, side)` for blurs by each of `stds` `(K,)`, in pixels; exactly the identity for 0."""
    v = cosines(side)
    made = v.T @ (decay(side, stds)[:, :, None] * v)
    return torch.where(stds[:, None, None] == 0, torch.eye(side, dtype=torch.float64), made)


def survivors(side: int, std: float, share: float = 1e-5) -> int:
    """How many cosines, from the slowest, keep at least `share` of their amplitude under a blur by `std`."""
    return min(side, 1 + math.floor(side / math.pi * math.sqrt(-2 * math.log(share)) / std))


def apply(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    """Matrices `(N, H', H)` and `(N, W', W)`, or one for all, on the sides of images `(N, C, H, W)`; in full precision."""
    with full_precision(x.device):
        wide = [m if m.ndim == 2 else m[:, None] for m in (rows, columns)]
        return wide[0].to(x) @ x @ wide[1].to(x).mT
