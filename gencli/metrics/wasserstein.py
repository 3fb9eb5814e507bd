"""Sliced Wasserstein distance: the mean over directions of the transport cost between sorted projections.

Offers: points

SW_p = (mean over unit θ of W_p^p(θ·X, θ·Y))^{1/p}; in one dimension W_p^p = ∫₀¹ |F⁻¹(u) − G⁻¹(u)|^p du, exactly, for
sets of any two sizes.

Ours: 128 directions fixed by a seed, so that runs are compared along the same ones; one dimension needs no directions.

Shapes: points `(N, D)`. Range: 0 and up; 0 for equal sets.
Raises: GencliError for points of different dimension or fewer than two of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.config import opt
from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import from_replicates, jackknife


class Wasserstein(SampleMetric):
    """Transport distance between point sets along random directions."""

    kinds: ClassVar[tuple[str, ...]] = ("points",)

    @dataclass(frozen=True)
    class Config:
        projections: int = opt(128, "number of directions", low=1)
        p: int = opt(2, "power of the distance that is averaged", low=1, high=2)
        seed: int = opt(0, "seed of the directions", low=0)

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> Value:
        self.check(real, fake)
        c = self.config
        theta = directions(real.size, c.projections, c.seed)
        x, y = real.x @ theta.T, fake.x @ theta.T
        value = _along(x, y, c.p)
        replicates = jackknife(lambda r, f: _along(x[r], y[f], c.p), len(real), len(fake))
        return Value(
            name=f"sliced-w{c.p}[{real.extractor}]",
            value=value,
            interval=None if replicates is None else from_replicates(value, replicates, low=0.0),
            n=len(fake),
            better="lower",
            facts={"n_real": len(real), "projections": len(theta), "seed": c.seed},
        )


def directions(size: int, count: int, seed: int = 0) -> np.ndarray:
    """Unit vectors `(count, size)`; the one direction where there is no other."""
    if size == 1:
        return np.ones((1, 1))
    drawn = np.random.default_rng(seed).standard_normal((count, size))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def sliced(real: np.ndarray, fake: np.ndarray, projections: int = 128, p: int = 2, seed: int = 0) -> float:
    """The sliced distance between points `(N, D)` and `(M, D)`."""
    theta = directions(real.shape[1], projections, seed)
    return _along(real @ theta.T, fake @ theta.T, p)


def _along(x: np.ndarray, y: np.ndarray, p: int) -> float:
    """From projections `(N, K)` and `(M, K)`."""
    x, y = np.sort(x, axis=0), np.sort(y, axis=0)
    n, m = len(x), len(y)
    if n == m:
        return float((np.abs(x - y) ** p).mean() ** (1 / p))
    # both quantile functions are steps: between neighbouring multiples of 1/n and 1/m they are constant
    edges = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in units of 1/(n m), exact
    share = np.diff(edges, prepend=0) / (n * m)
    at = edges - 1
    cost = np.abs(x[at // m] - y[at // n]) ** p  # (steps, K)
    return float((share @ cost).mean() ** (1 / p))
