"""Improved precision and recall (Kynkäänniemi et al., 2019). arXiv:1904.06991

Offers: image, points

The manifold of a set is the union of balls around its items, each reaching to the item's k-th nearest neighbour in the
set. Precision is the share of made items inside the real manifold, recall the share of real items inside the made one.

Ours: distances in float64 and blocks of rows; a point on a ball's surface is inside, so that equal sets give 1 and 1. The
intervals are those of halves (`metrics/_interval.py`), for 50 items or more.

Shapes: features `(N, D)`; more than k items on either side. Range: 0 to 1.
Raises: GencliError for sets of different features or with too few items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.config import opt
from gencli.metrics._balls import distances, enough, neighbours, reach, reach_among
from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import around_share, halves


class PrecisionRecall(SampleMetric):
    """Fidelity and coverage by balls of the k-th nearest neighbour."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    @dataclass(frozen=True)
    class Config:
        k: int = opt(3, "the neighbour that a ball reaches to", low=1)

    def least(self, real: FeatureSet) -> int:
        return self.config.k + 2

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> list[Value]:
        k = self.config.k
        self.check(real, fake)
        rr, ff, rf = distances(real.x, real.x), distances(fake.x, fake.x), distances(real.x, fake.x)
        estimate = _pair(rf, reach(rr, k), reach(ff, k))
        variance = None
        if enough(min(len(real), len(fake)), k):
            near, near_fake = neighbours(rr, k), neighbours(ff, k)

            def of(r: np.ndarray, f: np.ndarray) -> tuple[float, float]:
                return _pair(rf[np.ix_(r, f)], reach_among(rr, near, k, r), reach_among(ff, near_fake, k, f))

            variance = halves(of, len(real), len(fake))
        facts = {"n_real": len(real), "k": k, "features": real.size, "fingerprint": real.fingerprint}
        return [
            Value(
                name=f"{name}[{real.extractor}]",
                value=estimate[i],
                interval=None if variance is None else around_share(estimate[i], variance[i], count),
                n=len(fake),
                better="higher",
                note=real.note,
                facts=facts,
            )
            for i, (name, count) in enumerate((("precision", len(fake)), ("recall", len(real))))
        ]


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall of features `(N, D)` and `(M, D)`."""
    return _pair(distances(real, fake), reach(distances(real, real), k), reach(distances(fake, fake), k))


def _pair(rf: np.ndarray, real_reach: np.ndarray, fake_reach: np.ndarray) -> tuple[float, float]:
    slack = 1 + 1e-9  # squares from matrix products round differently on either side of a surface
    precise = np.any(rf <= real_reach[:, None] * slack, axis=0)  # (M,)
    recalled = np.any(rf <= fake_reach[None, :] * slack, axis=1)  # (N,)
    return float(precise.mean()), float(recalled.mean())
