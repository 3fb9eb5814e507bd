"""Diffusion Art or Digital Forgery? Investigating Data Replication (Somepalli et al., 2022). arXiv:2212.03860

Offers: image, samples, training items

    similarity(x) = max over training items t of  f(x)·f(t) / (|f(x)| |f(t)|)

A sample replicates where its similarity is above 0.5, the paper's threshold for features made to detect copies (SSCD), or
above nearly all similarities of training items to their nearest others, which holds for any features:

    data-replication              the share above the 95 % quantile of train-train similarities: 0.05 = as alike as those
    data-replication-above        the share above `threshold`
    data-replication-similarity   the mean similarity; beside it, in the facts, that of training items

An exact copy has similarity 1. With features that were not made for copies, such as the bundled ones, most pairs of one
class are above 0.5, and the second number says little.

Ours: train-train similarities of at most `pairs` items, each against all others. Intervals are over samples (Wilson's;
Student's t for the mean).

Errors: features that differ, or that are zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gencli.config import opt
from gencli.errors import GencliError
from gencli.metrics._base import Evidence, FeatureSet, ItemMetric, Value, mean_with_error
from gencli.metrics._neighbours import in_blocks, nearest
from gencli.metrics._shares import share


class DataReplication(ItemMetric):
    """Similarity of samples to their nearest training items, against that of training items to each other."""

    @dataclass(frozen=True)
    class Config:
        threshold: float = opt(0.5, "similarity above which a sample counts as a copy", low=-1.0, high=1.0)
        quantile: float = opt(0.95, "of train-train similarities, the other threshold", low=0.5, high=0.9999)
        pairs: int = opt(4096, "training items whose nearest others are looked up, at most", low=2)

    def __call__(self, evidence: Evidence) -> list[Value]:
        c, made, train = self.config, evidence.drawn().features, evidence.train.features
        if len(train) < 2:
            raise GencliError("data-replication compares training items, there are fewer than 2", "train on more items")
        similar, index = similarity(directions(made), directions(train))
        own = within(directions(train), c.pairs)
        edge = float(np.quantile(own, c.quantile))
        by = made.extractor
        facts = {
            "n_training": len(train),
            "train_train_quantile": edge,
            "train_train_mean": float(own.mean()),
            "train_train_above": float((own > c.threshold).mean()),
            "most_similar": [
                {"sample": int(i), "training": int(index[i]), "similarity": round(float(similar[i]), 4)}
                for i in np.argsort(-similar, kind="stable")[:16]
            ],
        }
        mean, _, interval = mean_with_error(similar)
        above, paper = share(similar > edge), share(similar > c.threshold)
        notes = (
            f"above {edge:.4g}, as {1 - c.quantile:.3g} of training items to their nearest others",
            f"above {c.threshold:g}; training items to each other: {facts['train_train_above']:.3f}",
            f"training items to each other: {own.mean():.4f}",
        )
        rows = (("", *above), ("-above", *paper), ("-similarity", mean, interval))
        return [
            Value(f"data-replication{end}[{by}]", value, around, len(made), "lower", note=note, facts=facts)
            for (end, value, around), note in zip(rows, notes, strict=True)
        ]


def directions(features: FeatureSet) -> np.ndarray:
    """Features of length 1."""
    length = np.linalg.norm(features.x, axis=1, keepdims=True)
    if not length.all():
        raise GencliError(
            f"{int((length == 0).sum())} items have features {features.extractor} that are all zero, so no direction",
            "use other --features",
        )
    return features.x / length


def similarity(x: np.ndarray, among: np.ndarray, skip: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The greatest cosine `(N,)` of each direction to another of `among`, and its index `(N,)`; 1 for a copy."""
    apart, index = nearest(x, in_blocks(among), skip)
    return 1 - apart**2 / 2, index


def within(train: np.ndarray, most: int) -> np.ndarray:
    """Similarity of training items, at most `most` spread evenly, to their nearest others."""
    some = np.arange(min(most, len(train))) * len(train) // min(most, len(train))
    return similarity(train[some], train, skip=some)[0]
