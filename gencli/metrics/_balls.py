"""Balls around the items of a set that reach to the k-th nearest neighbour, also with each group of the jackknife left out."""

from __future__ import annotations

import numpy as np

from gencli.metrics._interval import GROUPS

ROWS = 1024
SPARE = 16  # neighbours kept beyond the k-th


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
    """Whether k neighbours, and two items a group, are left without a group."""
    return n >= 2 * GROUPS and n - -(-n // GROUPS) > k


def reach_without(within: np.ndarray, k: int, groups: np.ndarray) -> np.ndarray:
    """The same `(25, N)` with each group left out; −1, which reaches nothing, for the group's own items.

    Only the nearest neighbours are looked at, all of them where too many belong to one group.
    """
    most = min(k + SPARE, len(within) - 1)
    nearest = np.argpartition(within, most, axis=1)[:, : most + 1]
    apart = np.take_along_axis(within, nearest, 1)
    order = apart.argsort(1)
    apart, of = np.take_along_axis(apart, order, 1), groups[np.take_along_axis(nearest, order, 1)]
    made = np.full((GROUPS, len(within)), -1.0)
    for group in range(GROUPS):
        left = np.flatnonzero(groups != group)
        counted = (of[left] != group).cumsum(1)
        made[group, left] = apart[left, (counted > k).argmax(1)]
        short = left[counted[:, -1] <= k]
        made[group, short] = reach(within[np.ix_(short, left)], k)
    return made
