"""Kernel inception distance (Bińkowski et al., 2018). arXiv:1801.01401

Offers: image, points

The unbiased squared maximum mean discrepancy with k(x, y) = (x·y/D + 1)³, averaged over random subsets:
Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] / (m (m − 1)) − 2 Σ_ij k(x_i, y_j) / m².

Ours: subsets of min(`block`, N) drawn without replacement by a seed in the receipt, so that a second evaluation gives
the same number; the interval comes from the statistic over all pairs, of which the subsets' mean is an estimate.

Shapes: features `(N, D)`; at least two items on either side. Range: near 0 for equal distributions, may be negative.
Raises: GencliError for sets of different features or of fewer than two items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gencli.config import opt
from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import from_replicates
from gencli.metrics._mmd import over_pairs, unbiased


class Kid(SampleMetric):
    """The polynomial-kernel discrepancy between feature sets."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    @dataclass(frozen=True)
    class Config:
        blocks: int = opt(100, "number of random subsets", low=1)
        block: int = opt(1000, "items in a subset, at most", low=2)
        seed: int = opt(0, "seed of the subsets", low=0)

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> Value:
        self.check(real, fake)
        c = self.config
        value = blocked(real.x, fake.x, c.blocks, c.block, c.seed)
        n = min(len(real), len(fake))
        _, replicates = over_pairs(kernel, real.x, fake.x)
        return Value(
            name=f"kid[{real.extractor}]",
            value=value,
            interval=None if replicates is None else from_replicates(value, replicates),
            n=len(fake),
            better="lower",
            note=real.note,
            facts={
                "n_real": len(real),
                "features": real.size,
                "fingerprint": real.fingerprint,
                "blocks": c.blocks,
                "block": min(n, c.block),
                "seed": c.seed,
            },
        )


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`(N, M)` of (x·y/D + 1)³."""
    inner = x @ y.T / x.shape[1] + 1
    return inner * inner * inner


def mmd2(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared discrepancy over all pairs."""
    return unbiased(kernel, x, y)


def blocked(real: np.ndarray, fake: np.ndarray, blocks: int, block: int, seed: int) -> float:
    """The mean over seeded subsets of equal size; one subset suffices where it holds everything."""
    size = min(len(real), len(fake), block)
    if size == len(real) == len(fake):
        return mmd2(real, fake)
    rng = np.random.default_rng(seed)
    pick = [(rng.choice(len(real), size, False), rng.choice(len(fake), size, False)) for _ in range(blocks)]
    return float(np.mean([mmd2(real[r], fake[f]) for r, f in pick]))
