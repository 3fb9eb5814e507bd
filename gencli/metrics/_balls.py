"""Balls around the items of a set that reach to the k-th nearest neighbour, also in a part of the set."""

from __future__ import annotations

import numpy as np

ROWS = 1024
SPARE = 16  # neighbours kept beyond twice k
LEAST = 50  # items that are halved

Near = tuple[np.ndarray, np.ndarray]  # distances and indices of neighbours


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


def reach(within: np.ndarray, k: int) -> np.ndarray:
    """Distance of each item to its k-th nearest neighbour, itself not counted."""
    return np.partition(within, k, axis=1)[:, k]


def enough(n: int, k: int) -> bool:
    """Whether halves have k neighbours and enough items to say how far apart they are."""
    return n >= LEAST and n // 2 > k


def neighbours(within: np.ndarray, k: int) -> Near:
    """The nearest items of each one, itself among them, nearest first: so many that k are in almost every half of the set."""
    most = min(2 * k + SPARE, len(within) - 1)
    index = np.argpartition(within, most, axis=1)[:, : most + 1]
    apart = np.take_along_axis(within, index, 1)
    order = apart.argsort(1)
    return np.take_along_axis(apart, order, 1), np.take_along_axis(index, order, 1)


def reach_among(within: np.ndarray, near: Near, k: int, kept: np.ndarray) -> np.ndarray:
    """`reach` of the items `kept` (indices) in the set of these alone."""
    apart, index = near
    inside = np.zeros(len(within), bool)
    inside[kept] = True
    counted = inside[index[kept]].cumsum(1)
    made = apart[kept, (counted > k).argmax(1)]
    short = np.flatnonzero(counted[:, -1] <= k)
    if len(short):
        made[short] = reach(within[np.ix_(kept[short], kept)], k)
    return np.asarray(made)
