"""Rethinking FID: Towards a Better Evaluation Metric for Image Generation (Jayasumana et al., 2024). arXiv:2401.09603

Offers: image

1000 times the squared maximum mean discrepancy of embeddings at length one, with k(x, y) = exp(−|x − y|² / (2 · 10²)): no
Gaussian is assumed, the estimate has no bias, and few items suffice.

Ours: the paper's unbiased estimator; its code keeps the pairs of an item with itself, which adds less than 40/N for
vectors of length one. The paper's embeddings are CLIP's: with others the brackets name them and the note says that
published numbers are something else.

Shapes: features `(N, D)`; at least two items on either side. Range: near 0 for equal distributions, may be negative; up to
about 40.
Raises: GencliError for sets of different features, of fewer than two items, or features that are all zero.
"""

from __future__ import annotations

from gencli.metrics._base import FeatureSet, SampleMetric, Value
from gencli.metrics._interval import from_replicates
from gencli.metrics._mmd import gaussian, over_pairs

BANDWIDTH, SCALE = 10.0, 1000.0


class Cmmd(SampleMetric):
    """The Gaussian-kernel discrepancy between directions of embeddings."""

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> Value:
        self.check(real, fake)
        value, replicates = over_pairs(gaussian(BANDWIDTH), real.unit(), fake.unit())
        other = "" if real.extractor.startswith("clip") else "not CLIP's embeddings: not comparable with published CMMD"
        return Value(
            name=f"cmmd[{real.extractor}]",
            value=SCALE * value,
            interval=None if replicates is None else from_replicates(SCALE * value, SCALE * replicates),
            n=len(fake),
            better="lower",
            note="; ".join(filter(None, (real.note, other))),
            facts={
                "n_real": len(real),
                "features": real.size,
                "fingerprint": real.fingerprint,
                "bandwidth": BANDWIDTH,
                "scale": SCALE,
            },
        )
