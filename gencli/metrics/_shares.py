"""Shares with 95 % intervals that need no distribution: of items, and of pairs of two sets."""

from __future__ import annotations

import numpy as np

Z_975 = 1.959963984540054

Share = tuple[float, tuple[float, float]]


def share(hits: np.ndarray) -> Share:
    """The share of True, with its interval."""
    return wilson(int(hits.sum()), len(hits))


def wilson(hits: float, n: float, z: float = Z_975) -> Share:
    """`hits` of `n` as a share and Wilson's interval, which has a width at 0 and 1 too."""
    p, spread = hits / n, z**2 / n
    middle = (p + spread / 2) / (1 + spread)
    half = np.sqrt(p * (1 - p) * spread + spread**2 / 4) / (1 + spread)
    return p, (float(max(0.0, min(p, middle - half))), float(min(1.0, max(p, middle + half))))


def error_of_pairs(below: np.ndarray) -> float:
    """The standard error of the mean of `below` `(N, M)`, whose rows and columns are independent items (DeLong)."""
    n, m = below.shape
    return float(np.sqrt(below.mean(1).var() / n + below.mean(0).var() / m))


def auc(low: np.ndarray, high: np.ndarray) -> Share:
    """The share of pairs in which `low` is below `high`, equal ones half; 0.5 = they cannot be told apart."""
    below = (low[:, None] < high[None, :]) + 0.5 * (low[:, None] == high[None, :])
    value, half = float(below.mean()), Z_975 * error_of_pairs(below)
    return value, (max(0.0, value - half), min(1.0, value + half))
