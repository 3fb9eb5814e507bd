"""Intervals for statistics of two sets: the delete-a-group jackknife with 25 groups.

Both sets are cut at random (seeded) into G groups; replicate g leaves group g out of both. With the replicates' spread,
se² = (G − 1)/G · Σ (T_g − mean)², the interval is T ± t₀.₉₇₅(G − 1) se, cut at the statistic's bounds. It contains T by
construction, and what a distance gains from a finite sample is the same in every replicate and cancels. It says where
the statistic of other draws of the same size would be: the sampling noise of one checkpoint, not of training.

(A percentile bootstrap is wrong here: resampling adds bias to a Fréchet distance, and the interval misses the estimate.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

GROUPS = 25
T_975 = 2.0638985616280205  # Student's t, 24 degrees of freedom

Interval = tuple[float, float]


def assign(n: int, groups: int = GROUPS, seed: int = 0) -> np.ndarray:
    """`(n,)` group of each item: sizes differ by at most one, members drawn at random so that order tells nothing."""
    return np.random.default_rng((seed, n)).permutation(np.arange(n) % groups)


def from_replicates(
    estimate: float, replicates: Sequence[float] | np.ndarray, low: float = -np.inf, high: float = np.inf
) -> Interval:
    """The interval around `estimate` from one replicate a group, within the statistic's bounds."""
    values = np.asarray(replicates, dtype=np.float64)
    assert len(values) == GROUPS, f"{len(values)} replicates, {GROUPS} are needed"
    half = T_975 * float(np.sqrt((GROUPS - 1) / GROUPS * ((values - values.mean()) ** 2).sum()))
    return max(low, estimate - half), min(high, estimate + half)


def jackknife(
    statistic: Callable[[np.ndarray, np.ndarray], float | np.ndarray],
    n_real: int,
    n_fake: int,
    seed: int = 0,
) -> np.ndarray | None:
    """`statistic(indices of real kept, indices of fake kept)` with each group left out, `(25, …)`.

    None with fewer than two items a group, where the spread means nothing.
    """
    if min(n_real, n_fake) < 2 * GROUPS:
        return None
    real, fake = assign(n_real, seed=seed), assign(n_fake, seed=seed + 1)
    return np.array([statistic(np.flatnonzero(real != g), np.flatnonzero(fake != g)) for g in range(GROUPS)])
