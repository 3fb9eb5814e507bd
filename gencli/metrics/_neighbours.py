"""Nearest neighbours by an exhaustive search in blocks.

Squares of distances come from matrix products; the distance to the neighbour that is found is computed again from the
difference, so that a copy is at exactly 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from gencli.core import Items

ROWS = 1024
READ = 2048  # items read at once


def nearest(
    x: np.ndarray, among: Iterator[np.ndarray] | list[np.ndarray], skip: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance `(N,)` of each row to the nearest row of all blocks, and its index `(N,)`; the first of equals.

    Args:
        x: `(N, D)` float64.
        among: blocks `(M, D)` float64 whose rows are counted through.
        skip: for each row the index that is no neighbour of it, such as its own.
    """
    best, index, rows = np.full(len(x), np.inf), np.full(len(x), -1), np.zeros_like(x)
    start = 0
    for block in among:
        square = (block * block).sum(1)
        for first in range(0, len(x), ROWS):
            here = slice(first, first + ROWS)
            apart = square - 2 * x[here] @ block.T  # less |x|², which is the same for all neighbours of x
            if skip is not None:
                own = skip[here] - start
                inside = np.flatnonzero((own >= 0) & (own < len(block)))
                apart[inside, own[inside]] = np.inf
            found = apart.argmin(1)
            reach = apart[np.arange(len(found)), found]
            nearer = np.flatnonzero(reach < best[here])
            best[here][nearer], index[here][nearer] = reach[nearer], start + found[nearer]
            rows[here][nearer] = block[found[nearer]]
        start += len(block)
    return np.sqrt(((x - rows) ** 2).sum(1)), index


def nearer(x: np.ndarray, among: Iterator[np.ndarray] | list[np.ndarray], reach: np.ndarray) -> np.ndarray:
    """How many rows of all blocks `(N,)` lie nearer to each row than its `reach`; those as near count half."""
    made, own = np.zeros(len(x)), (x * x).sum(1)
    for block in among:
        square = (block * block).sum(1)
        for first in range(0, len(x), ROWS):
            here = slice(first, first + ROWS)
            apart = own[here, None] + square - 2 * x[here] @ block.T
            edge = reach[here, None] ** 2
            slack = 1e-12 * (own[here, None] + edge)  # products of equal rows differ by rounding
            made[here] += (apart < edge - slack).sum(1) / 2 + (apart <= edge + slack).sum(1) / 2
    return made


def in_blocks(x: np.ndarray) -> list[np.ndarray]:
    """An array as blocks for `nearest`."""
    return [x[start : start + READ] for start in range(0, len(x), READ)]


def pixels(items: Items, indices: torch.Tensor | None = None) -> Iterator[np.ndarray]:
    """Items' values `(READ, D)` float64, block by block; whole numbers, so that products of them are exact."""
    for part in (torch.arange(len(items)) if indices is None else indices).split(READ):
        yield items.batch(part)["x"].flatten(1).double().numpy()
