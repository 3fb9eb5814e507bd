"""Isolating Sources of Disentanglement in Variational Autoencoders (Chen et al., 2018). arXiv:1802.04942

Offers: image, encode, factors

    MIG = (1/F) Σ_k (I(z_a; v_k) − I(z_b; v_k)) / H(v_k),   a the number of the latent that knows most of factor k, b the next

1 if every factor is in one number of the latent alone, 0 if two share it or none has it. Mutual information from a histogram of
posterior means, as in disentanglement_lib; the paper takes draws of the posterior, which lowers it by what their noise hides.

Ours: as many bins of equal width as the largest factor has values, 20 at least, disentanglement_lib's number: with 20 a code
that is a factor of 40 values itself has 0.8 of its entropy. Every entropy has Miller and Madow's correction (K − 1) / 2N of K
bins that occur, without which few items look like information. The interval is a jackknife's over 25 groups of items.

Raises: GencliError for data without factors, and for models without real latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gencli.config import opt
from gencli.core import Autoencoder, Items, Rng
from gencli.metrics._base import ModelMetric, Run, Value
from gencli.metrics._factors import represented
from gencli.metrics._interval import GROUPS, assign, from_replicates

LEAST_BINS = 20


class Mig(ModelMetric):
    """The gap between the number of the latent that knows most of a factor and the next."""

    needs: ClassVar[type[Any]] = Autoencoder

    @dataclass(frozen=True)
    class Config:
        bins: int = opt(0, "bins of a number of the latent; 0 = those of the largest factor, 20 at least", low=0)

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> Value:
        self.check(run)
        seen = represented(run, data, rng, n, batch_size, self.public_name())
        bins = self.config.bins or max(LEAST_BINS, int(seen.factors.max()) + 1)
        binned = in_bins(seen.codes, bins)
        each = gaps(binned, seen.factors)
        count = len(binned)
        around = None
        if count >= 2 * GROUPS:
            group = assign(count)
            left = [gaps(binned[group != g], seen.factors[group != g]).mean() for g in range(GROUPS)]
            around = from_replicates(float(each.mean()), left, low=0.0, high=1.0)
        facts = {"bins": bins, "gaps": {name: round(float(gap), 6) for name, gap in zip(seen.names, each, strict=True)}}
        return Value(self.public_name(), float(each.mean()), around, count, "higher", note=seen.note, facts=facts)


def in_bins(codes: np.ndarray, bins: int) -> np.ndarray:
    """Each number of `(N, D)` as its bin's place, between the least and the greatest of its column."""
    low, high = codes.min(0), codes.max(0)
    wide = np.where(high > low, high - low, 1)
    return np.minimum(((codes - low) / wide * bins).astype(int), bins - 1)


def gaps(binned: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Of every factor `(F,)`, the gap as a share of its entropy."""
    made = []
    for values in factors.T:
        known = np.sort([information(column, values) for column in binned.T])
        made.append((known[-1] - known[-2]) / information(values, values))
    return np.array(made)


def information(a: np.ndarray, b: np.ndarray) -> float:
    """Mutual information of two columns of whole numbers, corrected, in nats; of a column with itself, its entropy."""
    counts = np.bincount(a * (int(b.max()) + 1) + b, minlength=(int(a.max()) + 1) * (int(b.max()) + 1))
    p = counts.reshape(int(a.max()) + 1, -1) / len(a)
    both = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    some = p > 0
    cells = int((p.sum(1) > 0).sum()) + int((p.sum(0) > 0).sum()) - int(some.sum()) - 1
    return float((p[some] * np.log(p[some] / both[some])).sum()) + cells / (2 * len(a))
