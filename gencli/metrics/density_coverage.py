"""Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020). arXiv:2002.09797

Offers: image, points

With balls around the real items that reach to their k-th nearest real neighbour: density is the number of balls that a
made item lies in, divided by k, on average; coverage is the share of balls that a made item lies in. One far real item
with a huge ball raises precision to 1; it adds little to density, and one ball to coverage.

Ours: distances in float64; a ball's surface is outside, as in the authors' code, so that equal sets give 1 and 1 here too.
The intervals are those of halves (`metrics/_interval.py`), for 50 items or more.

Shapes: features `(N, D)`; more than k items on either side. Range: density from 0, near 1 for equal distributions and above
it for samples that crowd where real items do; coverage 0 to 1, about 1 − 2⁻ᵏ for equal distributions and numbers.
Raises: GencliError for sets of different features or with too few items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.config import opt
from gencli.metrics._balls import distances, enough, neighbours, reach, reach_among
from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import Interval, around, around_share, halves


class DensityCoverage(SampleMetric):
    """Fidelity and coverage by balls around real items only."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    @dataclass(frozen=True)
    class Config:
        k: int = opt(5, "the neighbour that a ball reaches to", low=1)

    def least(self, real: FeatureSet) -> int:
        return self.config.k + 2

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> list[Value]:
        k = self.config.k
        self.check(real, fake)
        rr, rf = distances(real.x, real.x), distances(real.x, fake.x)
        estimate = _pair(rf, reach(rr, k), k)
        intervals: list[Interval | None] = [None, None]
        if enough(min(len(real), len(fake)), k):
            near = neighbours(rr, k)
            variance = halves(
                lambda r, f: _pair(rf[np.ix_(r, f)], reach_among(rr, near, k, r), k), len(real), len(fake)
            )
            intervals = [
                around(estimate[0], variance[0], low=0.0),
                around_share(estimate[1], variance[1], len(real)),
            ]
        facts = {"n_real": len(real), "k": k, "features": real.size, "fingerprint": real.fingerprint}
        return [
            Value(
                name=f"{name}[{real.extractor}]",
                value=estimate[i],
                interval=intervals[i],
                n=len(fake),
                better="higher",
                note=real.note,
                facts=facts,
            )
            for i, name in enumerate(("density", "coverage"))
        ]


def density_coverage(real: np.ndarray, fake: np.ndarray, k: int = 5) -> tuple[float, float]:
    """Density and coverage of features `(N, D)` and `(M, D)`."""
    return _pair(distances(real, fake), reach(distances(real, real), k), k)


def _pair(rf: np.ndarray, radius: np.ndarray, k: int) -> tuple[float, float]:
    inside = rf < radius[:, None] * (1 - 1e-9)  # products round differently on either side of a surface
    return float(inside.sum(0).mean() / k), float(inside.any(1).mean())
