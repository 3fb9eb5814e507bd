"""Effectively Unbiased FID and Inception Score and Where to Find Them (Chong & Forsyth, 2020). arXiv:1911.07023

Offers: image, points

A Fréchet distance of N items is too high by about a constant over N. FID∞ is where the line through the distances of
subsets of growing size, against 1/N, meets 1/N = 0: 15 sizes, the distance of each, ordinary least squares.

Ours: the paper shrinks the samples only; here both sets shrink by the same factor, so that what a small reference adds
goes too. Sizes are evenly spaced from a tenth of the set (as in the paper), but at least twice the features, below which
the line bends. Subsets are the beginnings of one seeded random order, and replicates for the interval leave every 25th item
of that order out: a fresh draw in each would count as sampling noise 24 times over. It costs `sizes` times what `fid` does.

Shapes: features `(N, D)`; N ≥ 4 D on either side. Range: near 0 for equal distributions, may be a little negative.
Raises: GencliError for sets of different features or with too few items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.config import opt
from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import GROUPS, from_replicates
from gencli.metrics.fid import distance


class FidInfinity(SampleMetric):
    """The Fréchet distance, extrapolated to infinitely many items."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    @dataclass(frozen=True)
    class Config:
        sizes: int = opt(15, "sizes of subsets", low=3, high=100)
        seed: int = opt(0, "seed of the subsets", low=0)

    def least(self, real: FeatureSet) -> int:
        return max(4 * real.size, 2 * GROUPS)

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> Value:
        self.check(real, fake)
        x, y = (_in_random_order(each.x, (self.config.seed, i)) for i, each in enumerate((real, fake)))
        shares = np.linspace(max(0.1, 2 * real.size / min(len(x), len(y))), 1, self.config.sizes)
        value = extrapolated(x, y, shares)
        every = [slice(group, None, GROUPS) for group in range(GROUPS)]
        replicates = [extrapolated(np.delete(x, out, 0), np.delete(y, out, 0), shares) for out in every]
        first = round(shares[0] * len(fake))
        return Value(
            name=f"fid-infinity[{real.extractor}]",
            value=value,
            interval=from_replicates(value, replicates),
            n=len(fake),
            better="lower",
            note="; ".join(filter(None, (real.note, f"extrapolated from {first:,} to {len(fake):,} items"))),
            facts={
                "n_real": len(real),
                "features": real.size,
                "fingerprint": real.fingerprint,
                "sizes": self.config.sizes,
                "smallest": first,
                "seed": self.config.seed,
            },
        )


def extrapolated(real: np.ndarray, fake: np.ndarray, shares: np.ndarray) -> float:
    """The distance at 1/share = 0 of sets in random order, from those of their beginnings."""
    found = [distance(real[: round(s * len(real))], fake[: round(s * len(fake))]) for s in shares]
    return float(np.polynomial.polynomial.polyfit(1 / shares, found, 1)[0])


def _in_random_order(x: np.ndarray, seed: tuple[int, int]) -> np.ndarray:
    return x[np.random.default_rng(seed).permutation(len(x))]
