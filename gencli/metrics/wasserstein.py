"""Sliced Wasserstein distance: the mean over directions of the transport cost between sorted projections.

Offers: points, image

SW_p = (mean over unit θ of W_p^p(θ·X, θ·Y))^{1/p}; in one dimension W_p^p = ∫₀¹ |F⁻¹(u) − G⁻¹(u)|^p du, exactly, for
sets of any two sizes.

Ours: 128 directions fixed by a seed, so that runs are compared along the same ones; one dimension needs no directions.
`exact` pairs items one to one at the least cost in all dimensions at once, W_p without slices, for up to 1,000 of either
set; it is too high by about N^(−1/D), the sliced distance by about N^(−1/2). Images are their features.

Shapes: features or points `(N, D)`. Range: 0 and up; 0 for equal sets.
Raises: GencliError for sets of different features or of fewer than two items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.config import opt
from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import from_replicates, jackknife

MOST = 1000


class Wasserstein(SampleMetric):
    """Transport distance between sets along random directions, or exactly."""

    kinds: ClassVar[tuple[str, ...]] = ("points", "image")

    @dataclass(frozen=True)
    class Config:
        projections: int = opt(128, "number of directions", low=1)
        p: int = opt(2, "power of the distance that is averaged", low=1, high=2)
        seed: int = opt(0, "seed of the directions, or of the items that are paired", low=0)
        exact: bool = opt(False, "pair items one to one instead of slicing, 1,000 at most")

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> Value:
        self.check(real, fake)
        return self._exact(real, fake) if self.config.exact else self._sliced(real, fake)

    def _sliced(self, real: FeatureSet, fake: FeatureSet) -> Value:
        c = self.config
        theta = directions(real.size, c.projections, c.seed)
        x, y = real.x @ theta.T, fake.x @ theta.T
        value = _along(x, y, c.p)
        replicates = jackknife(lambda r, f: _along(x[r], y[f], c.p), len(real), len(fake))
        facts = {"n_real": len(real), "projections": len(theta)}
        return self._value(f"sliced-w{c.p}", value, replicates, len(fake), real, facts)

    def _exact(self, real: FeatureSet, fake: FeatureSet) -> Value:
        from scipy.spatial.distance import cdist

        c = self.config
        n = min(len(real), len(fake), MOST)
        pick = (np.random.default_rng((c.seed, i)).permutation(len(each))[:n] for i, each in enumerate((real, fake)))
        cost = cdist(real.x[next(pick)], fake.x[next(pick)]) ** c.p
        value = paired(cost, c.p)
        replicates = jackknife(lambda r, f: paired(cost[np.ix_(r, f)], c.p), n, n)
        return self._value(f"w{c.p}", value, replicates, n, real, {"n_real": n})

    def _value(
        self, name: str, value: float, replicates: np.ndarray | None, n: int, real: FeatureSet, facts: dict[str, int]
    ) -> Value:
        facts = {**facts, "features": real.size, "seed": self.config.seed}
        return Value(
            name=f"{name}[{real.extractor}]",
            value=value,
            interval=None if replicates is None else from_replicates(value, replicates, low=0.0),
            n=n,
            better="lower",
            note=real.note,
            facts={**facts, "fingerprint": real.fingerprint},
        )


def paired(cost: np.ndarray, p: int) -> float:
    """The distance of the cheapest pairing, from the costs of all pairs `(N, N)`."""
    from scipy.optimize import linear_sum_assignment

    return float(cost[linear_sum_assignment(cost)].mean() ** (1 / p))


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
