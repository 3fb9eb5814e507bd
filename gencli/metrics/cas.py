"""Classification Accuracy Score for Conditional Generative Models (Ravuri & Vinyals, 2019). arXiv:1905.10887

Offers: image, samples, labels

A classifier is trained on samples and the classes that were asked for, and judged on held-out real items: the value is the
share that it classifies as labelled. The same classifier trained on as many real items stands beside it. A model whose
samples are of the right class, sharp and varied, can stand in for its data; a dropped mode, or a class without variety,
costs accuracy that no Fréchet distance shows.

Ours: the classifier is a logistic regression on the chosen features (the paper trains a ResNet-50), so values of different
`--features` are not comparable. Features that were trained to tell the same classes apart, as the bundled ones were on
digits and clothes, need one good image of each: `--features pixels` sees variety. The interval is Wilson's, over held-out
items.

Errors: samples or items without labels; samples of one class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Items
from gencli.errors import GencliError
from gencli.metrics._base import Evidence, ItemMetric, Value, spread
from gencli.metrics._shares import share
from gencli.metrics.linear_probe import predicted


class Cas(ItemMetric):
    """Accuracy on real items of a classifier that saw only samples."""

    @dataclass(frozen=True)
    class Config:
        c: float = opt(0.1, "inverse weight of the classifier's penalty: larger = less", low=1e-6)
        steps: int = opt(1000, "iterations of its solver, at most", low=1)

    def __call__(self, evidence: Evidence) -> Value:
        samples, test, train = evidence.drawn(), evidence.test, evidence.train
        truth, asked = (labels_of(seen.items, torch.arange(len(seen)), evidence.batch_size) for seen in (test, samples))
        found = self._share(samples.features.x, asked, test.features.x, truth)
        value, around = share(found)
        some = spread(len(train), len(samples))
        known = labels_of(train.items, some, evidence.batch_size)
        real = self._share(train.features_of(some).x, known, test.features.x, truth)
        by = samples.features.extractor
        return Value(
            name=f"cas[{by}]",
            value=value,
            interval=around,
            n=len(samples),
            better="higher",
            note=f"{real.mean():.3f} trained on {len(some)} real items; judged on {len(truth)} held-out items",
            facts={"trained_on_real": float(real.mean()), "n_real": len(some), "n_held_out": len(truth)},
        )

    def _share(self, x: np.ndarray, labels: np.ndarray, held: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Which held-out items `(N,)` the classifier of `x` is right about."""
        seen, _ = predicted(x, labels, held, self.config.c, self.config.steps)
        return seen == truth


def labels_of(items: Items, chosen: Tensor, batch_size: int) -> np.ndarray:
    """`(N,)` the labels of the chosen items.

    Raises:
        GencliError: they have none.
    """
    made = []
    for indices in chosen.split(batch_size):
        raw = items.batch(indices)
        if "label" not in raw:
            raise GencliError("cas needs labels, these items have none", "use a model of labelled data")
        made.append(raw["label"])
    return torch.cat(made).numpy()
