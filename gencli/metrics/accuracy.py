"""Accuracy of a classifier on held-out items, and the nats that it needs for their classes.

Offers: image, points, classify

    accuracy = share of items whose class has the greatest logit,   cross-entropy = −mean log p(y | x)

A classifier of noisy data is asked about clean ones. Guessing needs log K nats for K classes.

Errors: a model that tells no classes; items without labels, or with labels of other classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from gencli.core import Classifier, Items, Rng
from gencli.errors import GencliError
from gencli.metrics._base import ModelMetric, Run, Value, base_seed, item_rows, mean_with_error, spread
from gencli.metrics._shares import share


class Accuracy(ModelMetric):
    """How often a classifier is right."""

    needs: ClassVar[type[Any]] = Classifier

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> list[Value]:
        self.check(run)
        model: Any = run.model
        classes = model.spec.cond["label"].vocab
        seed, right, nats = base_seed(rng, "accuracy"), [], []
        for indices in spread(len(data), n).split(batch_size):
            raw = data.batch(indices)
            if "label" not in raw:
                raise GencliError("accuracy needs items with labels, these have none", "give labelled data with --data")
            if int(raw["label"].max()) >= classes:
                raise GencliError(
                    f"an item has label {int(raw['label'].max())}, the model knows classes 0 to {classes - 1}",
                    "evaluate it on the data that it was trained on",
                )
            with torch.no_grad():
                batch = run.encode({"x": raw["x"]}, item_rows(seed, indices, model))
                logits = model.class_logits(batch["x"]).double().cpu()
            right.append((logits.argmax(1) == raw["label"]).numpy())
            nats.append(F.cross_entropy(logits, raw["label"], reduction="none").numpy())
        hits = np.concatenate(right)
        mean, error, interval = mean_with_error(np.concatenate(nats))
        value, around = share(hits)
        facts = {"classes": classes}
        return [
            Value("accuracy", value, around, len(hits), "higher", facts=facts),
            Value(
                "cross-entropy", mean, interval, len(hits), "lower", "nats", facts={**facts, "standard_error": error}
            ),
        ]
