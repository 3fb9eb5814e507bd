"""The Vendi Score: A Diversity Evaluation Metric for Machine Learning (Friedman & Dieng, 2023). arXiv:2210.02410

Offers: image

exp(−Σ λ_i log λ_i) with λ the eigenvalues of K/n, K_ij = x_i·x_j / (|x_i| |x_j|): the number of items, all unlike each
other, that would be as diverse. It says nothing of quality: noise may be the most diverse of all.

Ours: the eigenvalues come from the smaller of K/n and the features' second moments, which share those above 0; the
reference's own score is told beside it.

Shapes: features `(N, D)`. Range: 1 for equal items to min(N, D) for items at right angles.
Raises: GencliError for sets of different features, of fewer than two items, or features that are all zero.
"""

from __future__ import annotations

import numpy as np
import torch

from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import from_replicates, jackknife


class Vendi(SampleMetric):
    """The effective number of different samples."""

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> Value:
        self.check(real, fake)
        x, n, reference = fake.unit(), len(fake), diversity(real.unit())
        value = diversity(x)
        replicates = jackknife(lambda _, kept: diversity(x[kept]), n, n)
        high = float(min(n, fake.size))
        return Value(
            name=f"vendi[{fake.extractor}]",
            value=value,
            interval=None if replicates is None else from_replicates(value, replicates, 1.0, high),
            n=n,
            better="higher",
            note="; ".join(filter(None, (real.note, f"diversity only; {len(real):,} real items have {reference:.4g}"))),
            facts={
                "n_real": len(real),
                "reference_score": reference,
                "features": fake.size,
                "fingerprint": fake.fingerprint,
            },
        )


def diversity(x: np.ndarray) -> float:
    """The score of vectors of length one `(N, D)`."""
    n, size = x.shape
    moments = (x @ x.T if n < size else x.T @ x) / n
    values = torch.linalg.eigvalsh(torch.from_numpy(moments)).numpy()
    share = values[values > 0]  # below are rounding errors of 0, which adds nothing
    return max(1.0, float(np.exp(-(share * np.log(share)).sum())))
