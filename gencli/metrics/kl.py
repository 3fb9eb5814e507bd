"""Divergence Estimation via k-Nearest-Neighbor Distances (Wang, Kulkarni & Verdú, 2009).

Offers: points

From distances to k-th nearest neighbours, in nats, with P the data and Q what a model makes:

    kl           KL(P ‖ Q), high where samples are missing
    reverse-kl   KL(Q ‖ P), high where samples are that should not be
    js           Jensen and Shannon's divergence, 0 to log 2, the gap that is left to a perfect critic

Ours: `js` takes as many of either set, drawn by a seed, and measures both against all of them together. A greater k than 1
spreads less and is further off: where one set reaches far beyond the other, the neighbours are too far away to tell how
much less dense it is, and the divergence comes out too low. The interval knows nothing of that: it is the one of halves
(`metrics/_interval.py`), for 50 items or more, around what sets of this size have on average.

Shapes: points `(N, D)`; more than k items on either side. Range: near 0 for equal distributions, may be a little negative.
Raises: GencliError for points of different dimension, too few of them, or more than k that coincide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.config import opt
from gencli.metrics._balls import enough
from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._divergence import js, kl
from gencli.metrics._interval import Interval, around, halves

Estimate = Callable[[np.ndarray, np.ndarray, int], float]


class Kl(SampleMetric):
    """Divergences between point sets, in both directions."""

    kinds: ClassVar[tuple[str, ...]] = ("points",)

    @dataclass(frozen=True)
    class Config:
        k: int = opt(1, "the neighbour whose distance measures a density", low=1)
        seed: int = opt(0, "seed of the items that js leaves out of the larger set", low=0)

    def least(self, real: FeatureSet) -> int:
        return self.config.k + 2

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> list[Value]:
        k = self.config.k
        self.check(real, fake)
        n = min(len(real), len(fake))
        x, y = self._subset(real.x, n, 0), self._subset(fake.x, n, 1)
        estimates = {
            "kl": _with_interval(kl, real.x, fake.x, k),
            "reverse-kl": _with_interval(kl, fake.x, real.x, k),
            "js": _with_interval(js, x, y, k, high=float(np.log(2))),
        }
        facts = {"n_real": len(real), "k": k, "features": real.size, "fingerprint": real.fingerprint}
        return [
            Value(
                name=f"{name}[{real.extractor}]",
                value=value,
                interval=interval,
                n=n if name == "js" else len(fake),
                better="lower",
                unit="nats",
                note=real.note,
                facts={**facts, "seed": self.config.seed} if name == "js" else facts,
            )
            for name, (value, interval) in estimates.items()
        ]

    def _subset(self, x: np.ndarray, n: int, key: int) -> np.ndarray:
        return x if len(x) == n else x[np.random.default_rng((self.config.seed, key)).choice(len(x), n, replace=False)]


def _with_interval(
    estimate: Estimate, x: np.ndarray, y: np.ndarray, k: int, high: float = np.inf
) -> tuple[float, Interval | None]:
    value = estimate(x, y, k)
    if not enough(min(len(x), len(y)), k):
        return value, None
    variance = halves(lambda a, b: estimate(x[a], y[b], k), len(x), len(y))
    return value, around(value, float(variance), high=high)
