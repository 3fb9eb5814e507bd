"""Improved Techniques for Training GANs: the Inception score (Salimans et al., 2016). arXiv:1606.03498

Offers: image

    exp E_x KL(p(y | x) ‖ p(y)),   p(y) = E_x p(y | x)

of a classifier's probabilities for made images: high where each image is one class for sure and all classes are made
equally often. The mean over 10 splits, each with its own p(y); the spread over them is in the note.

Ours: the splits are drawn by a seed, since the images of a folder may be sorted by class; the interval is Student's t of
their mean. The classes are those of the features in the brackets: a score of other classes is another number, at most as
many as there are. Inception's probabilities are those of its authors' code, which leaves out the last layer's bias. The
score knows nothing of the data; the reference's own is told beside it.

Shapes: features `(N, D)` with a classifier's last layer. Range: 1 to the number of classes.
Raises: GencliError for features without a classifier or too few items for the splits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax, logsumexp

from gencli.config import opt
from gencli.errors import GencliError
from gencli.metrics._base import FeatureSet, SampleMetric, Value, mean_with_error
from gencli.metrics._divergence import categorical_kl
from gencli.metrics._interval import assign


class InceptionScore(SampleMetric):
    """How sure a classifier is of each sample, and how evenly they cover its classes."""

    @dataclass(frozen=True)
    class Config:
        splits: int = opt(10, "parts that are scored by themselves", low=1, high=100)
        seed: int = opt(0, "seed of the splits", low=0)

    def least(self, real: FeatureSet) -> int:
        return 2 * self.config.splits

    def foresee(self, real: FeatureSet, n: int) -> None:
        logits_of(real)
        super().foresee(real, n)

    def __call__(self, real: FeatureSet, fake: FeatureSet) -> Value:
        c = self.config
        self.check(real, fake)
        logits = logits_of(fake)
        found = scores(logits, c.splits, c.seed)
        reference = scores(logits_of(real), c.splits, c.seed)
        value, error, interval = mean_with_error(found)
        classes, part = logits.shape[1], len(fake) // c.splits
        notes = [real.note, f"{classes} classes"]
        if c.splits > 1:
            notes[1] += f", sd {found.std():.3g} over {c.splits} splits"
        notes[1] += f"; the reference scores {reference.mean():.4g}"
        if part < 10 * classes:
            notes.append(f"{part} items a split for {classes} classes: the score is too low")
        return Value(
            name=f"inception-score[{fake.extractor}]",
            value=value,
            interval=None if interval is None else (max(1.0, interval[0]), min(float(classes), interval[1])),
            n=len(fake),
            better="higher",
            note="; ".join(filter(None, notes)),
            facts={
                "n_real": len(real),
                "reference_score": float(reference.mean()),
                "sd": float(found.std()),
                "standard_error": error,
                "classes": classes,
                "splits": c.splits,
                "seed": c.seed,
                "fingerprint": fake.fingerprint,
            },
        )


def logits_of(features: FeatureSet) -> np.ndarray:
    """`(N, classes)`."""
    if features.head is None:
        raise GencliError(
            f"inception-score needs class probabilities, features '{features.extractor}' have none",
            "use `--features gencli`, `--features inception`, or the path of a run of `gencli train classifier`",
        )
    return features.head(features.x)


def scores(logits: np.ndarray, splits: int, seed: int = 0) -> np.ndarray:
    """`(splits,)` scores of random parts whose sizes differ by at most one."""
    part = assign(len(logits), splits, seed)
    return np.array([score(logits[part == i]) for i in range(splits)])


def score(logits: np.ndarray) -> float:
    """Of one part: 1 where all predictions are equal, the number of classes where each is sure and all are as many."""
    log_p = log_softmax(logits, axis=1)
    marginal = logsumexp(log_p, axis=0) - np.log(len(log_p))
    return float(np.exp(categorical_kl(log_p, marginal).mean()))
