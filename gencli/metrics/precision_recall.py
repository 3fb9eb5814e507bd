"""Improved precision and recall (Kynkäänniemi et al., 2019). arXiv:1904.06991

Offers: image, points

The manifold of a set is the union of balls around its items, each reaching to the item's k-th nearest neighbour in the
set. Precision is the share of made items inside the real manifold, recall the share of real items inside the made one.

Ours: distances in float64 and blocks of rows; a point on a ball's surface is inside, so that equal sets give 1 and 1.

Shapes: features `(N, D)`; more than k items on either side. Range: 0 to 1.
Raises: GencliError for sets of different features or with too few items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.config import opt
from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import from_replicates, jackknife

ROWS = 1024


class PrecisionRecall(SampleMetric):
    """Fidelity and coverage by balls of the k-th nearest neighbour."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    @dataclass(frozen=True)
    class Config:
        k: int = opt(3, "the neighbour that a ball reaches to", low=1)

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> list[Value]:
        k = self.config.k
        self.check(real, fake, least=k + 2)
        rr, ff, rf = distances(real.x, real.x), distances(fake.x, fake.x), distances(real.x, fake.x)
        estimate = _pair(rr, ff, rf, k)
        replicates = jackknife(
            lambda r, f: np.array(_pair(rr[np.ix_(r, r)], ff[np.ix_(f, f)], rf[np.ix_(r, f)], k)),
            len(real),
            len(fake),
        )
        facts = {"n_real": len(real), "k": k, "features": real.size, "fingerprint": real.fingerprint}
        return [
            Value(
                name=f"{name}[{real.extractor}]",
                value=estimate[i],
                interval=None if replicates is None else from_replicates(estimate[i], replicates[:, i], 0.0, 1.0),
                n=len(fake),
                better="higher",
                note=real.note,
                facts=facts,
            )
            for i, name in enumerate(("precision", "recall"))
        ]


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Precision and recall of features `(N, D)` and `(M, D)`."""
    return _pair(distances(real, real), distances(fake, fake), distances(real, fake), k)


def distances(x: np.ndarray, y: np.ndarray, rows: int = ROWS) -> np.ndarray:
    """Euclidean `(N, M)`, from squares in blocks of rows; equal items may be some 1e-8 of the largest distance apart."""
    made = np.empty((len(x), len(y)))
    centre = y.mean(0)
    a, b = x - centre, y - centre
    square = (b * b).sum(1)
    for start in range(0, len(x), rows):
        part = a[start : start + rows]
        made[start : start + rows] = (part * part).sum(1)[:, None] + square - 2 * part @ b.T
    return np.sqrt(np.clip(made, 0, None))


def _pair(rr: np.ndarray, ff: np.ndarray, rf: np.ndarray, k: int) -> tuple[float, float]:
    slack = 1 + 1e-9  # squares from matrix products round differently on either side of a surface
    real_reach, fake_reach = _reach(rr, k) * slack, _reach(ff, k) * slack
    precision = float((rf <= real_reach[:, None]).any(0).mean())
    recall = float((rf <= fake_reach[None, :]).any(1).mean())
    return precision, recall


def _reach(within: np.ndarray, k: int) -> np.ndarray:
    """Distance of each item to its k-th nearest neighbour, itself not counted."""
    return np.partition(within, k, axis=1)[:, k]
