"""The forward SDEs of score-based models (arXiv:2011.13456) in closed form, t in [0, 1], float64.

                drift              g²                                mean α            standard deviation
    VP          −½ β x             β                                 e^(−B/2)          √(1 − α²)
    sub-VP      −½ β x             β (1 − e^(−2B))                   e^(−B/2)          1 − α²
    VE          0                  dσ²/dt                            1                 low (high / low)^t

with β(t) = β_0 + t (β_1 − β_0) and B(t) = ∫ β = β_0 t + ½ (β_1 − β_0) t². In the coordinates x = x_0 + σ n of every denoiser
here, σ is the standard deviation over α: √(e^B − 1) for VP, and for sub-VP e^(B/2) − e^(−B/2) = 2 sinh(B/2).

Ours: VE's variance at t = 0 is low², not 0, so `ve_sigma(0)` is low, which is what the paper's code trains at.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BETA_MIN, BETA_MAX = 0.1, 20.0


def beta(t: Tensor, low: float = BETA_MIN, high: float = BETA_MAX) -> Tensor:
    """The rate of VP and sub-VP at time t."""
    return low + t.double() * (high - low)


def spent(t: Tensor, low: float = BETA_MIN, high: float = BETA_MAX) -> Tensor:
    """B(t), the rate's integral from 0."""
    t = t.double()
    return low * t + (high - low) / 2 * t**2


def time_spent(total: Tensor, low: float = BETA_MIN, high: float = BETA_MAX) -> Tensor:
    """The t at which the rate's integral is `total`."""
    total = total.double()
    return 2 * total / (low + (low**2 + 2 * (high - low) * total).sqrt())


def vp_alpha_bar(t: Tensor, low: float = BETA_MIN, high: float = BETA_MAX) -> Tensor:
    """α², the share of the data's variance that is left at time t; also that of sub-VP."""
    return (-spent(t, low, high)).exp()


def vp_sigma(t: Tensor, low: float = BETA_MIN, high: float = BETA_MAX) -> Tensor:
    """√(1/ᾱ − 1)."""
    return torch.expm1(spent(t, low, high)).sqrt()


def vp_time(sigma: Tensor, low: float = BETA_MIN, high: float = BETA_MAX) -> Tensor:
    """The t at which `vp_sigma` is σ."""
    return time_spent(torch.log1p(sigma.double() ** 2), low, high)


def subvp_sigma(t: Tensor, low: float = BETA_MIN, high: float = BETA_MAX) -> Tensor:
    """(1 − ᾱ) / √ᾱ."""
    return 2 * torch.sinh(spent(t, low, high) / 2)


def subvp_time(sigma: Tensor, low: float = BETA_MIN, high: float = BETA_MAX) -> Tensor:
    """The t at which `subvp_sigma` is σ."""
    return time_spent(2 * torch.asinh(sigma.double() / 2), low, high)


def subvp_alpha(sigma: Tensor) -> Tensor:
    """The share of x_0 in sub-VP's x, by which x = x_0 + σ n is scaled for its network: (√(σ² + 4) − σ) / 2."""
    sigma = sigma.double()
    return 2 / ((sigma**2 + 4).sqrt() + sigma)


def ve_sigma(t: Tensor, low: float, high: float) -> Tensor:
    """low (high / low)^t."""
    return low * (t.double() * math.log(high / low)).exp()


def ve_time(sigma: Tensor, low: float, high: float) -> Tensor:
    """The t at which `ve_sigma` is σ."""
    return (sigma.double() / low).log() / math.log(high / low)
