"""Fréchet inception distance (Heusel et al., 2017). arXiv:1706.08500

Offers: image, points

d² = |μ_r − μ_f|² + Tr(S_r + S_f − 2 (S_r S_f)^½) between Gaussians fitted to features of real and made images.

Ours: float64 throughout, symmetric eigenvalues instead of a general matrix square root; the features are named in the
brackets of the result, because distances of different features must not be compared. The estimate is biased upwards by
about a constant over N, so N is part of the result, and too few items for a regular covariance are said.

Shapes: features `(N, D)`; at least two items on either side. Range: 0 and up, 0 for equal means and covariances.
Raises: GencliError for sets of different features or of fewer than two items.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._frechet import Statistics, frechet_distance
from gencli.metrics._interval import from_replicates, jackknife


class Fid(SampleMetric):
    """The Fréchet distance between feature sets."""

    kinds: ClassVar[tuple[str, ...]] = ("image", "points")

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> Value:
        self.check(real, fake)
        value = distance(real.x, fake.x)
        replicates = jackknife(lambda r, f: distance(real.x[r], fake.x[f]), len(real), len(fake))
        n = min(len(real), len(fake))
        notes = [real.note]
        if n <= real.size:
            notes.append(f"{n} items for {real.size} features: the covariance is singular and the distance too high")
        return Value(
            name=f"fid[{real.extractor}]",
            value=value,
            interval=None if replicates is None else from_replicates(value, replicates, low=0.0),
            n=len(fake),
            better="lower",
            note="; ".join(part for part in notes if part),
            facts={"n_real": len(real), "features": real.size, "fingerprint": real.fingerprint},
        )


def distance(real: np.ndarray, fake: np.ndarray) -> float:
    """The distance between features `(N, D)` and `(M, D)`."""
    return frechet_distance(Statistics.of(real), Statistics.of(fake))
