"""A Kernel Two-Sample Test: the maximum mean discrepancy (Gretton et al., 2012).

Offers: points, image

The unbiased squared discrepancy Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] / (n (n − 1)) − 2 Σ_ij k(x_i, y_j) / n², over all pairs,
with k(x, y) = exp(−|x − y|² / (2 σ²)): 0 only for equal distributions, whatever their moments.

Ours: σ is the median distance between two items of the reference (2,000 of them, drawn by a seed), not of both sets, so
that all models are judged by one kernel; it is in the note. Values of different σ are not comparable.

Shapes: features `(N, D)`; at least two items on either side. Range: near 0 for equal distributions, may be negative; up to 2.
Raises: GencliError for sets of different features, of fewer than two items, or a reference of equal items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.spatial.distance import pdist

from gencli.config import opt
from gencli.errors import GencliError
from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import from_replicates
from gencli.metrics._mmd import gaussian, over_pairs

MEDIAN_OF = 2000


class Mmd(SampleMetric):
    """The Gaussian-kernel discrepancy between sets."""

    kinds: ClassVar[tuple[str, ...]] = ("points", "image")

    @dataclass(frozen=True)
    class Config:
        bandwidth: float = opt(0.0, "σ of the kernel; 0 = the median distance in the reference", low=0.0)
        seed: int = opt(0, "seed of the items whose median it is", low=0)

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> Value:
        self.check(real, fake)
        given = self.config.bandwidth
        bandwidth = given or median_distance(real.x, self.config.seed)
        value, replicates = over_pairs(gaussian(bandwidth), real.x, fake.x)
        whose = "given" if given else "the reference's median distance"
        return Value(
            name=f"mmd[{real.extractor}]",
            value=value,
            interval=None if replicates is None else from_replicates(value, replicates),
            n=len(fake),
            better="lower",
            note="; ".join(filter(None, (real.note, f"squared; σ = {bandwidth:.4g}, {whose}"))),
            facts={
                "n_real": len(real),
                "features": real.size,
                "fingerprint": real.fingerprint,
                "bandwidth": bandwidth,
            },
        )


def median_distance(x: np.ndarray, seed: int = 0) -> float:
    """Between two items of the set."""
    if len(x) > MEDIAN_OF:
        x = x[np.random.default_rng(seed).choice(len(x), MEDIAN_OF, replace=False)]
    median = float(np.median(pdist(x)))
    if median == 0:
        raise GencliError(
            "most items of the reference are equal: their median distance is 0", "give one: `--mmd.bandwidth 1`"
        )
    return median
