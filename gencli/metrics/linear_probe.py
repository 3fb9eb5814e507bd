"""Understanding Intermediate Layers Using Linear Classifier Probes (Alain & Bengio, 2016). arXiv:1610.01644

Offers: image, encode

A logistic regression is fitted to the features of training items and their labels; the value is the share of held-out
items that it classifies as labelled. The features are those that the model offers, else its latents: of discrete ones the
codebook's vectors where the model has them, else one indicator for each value. The same probe on grey levels stands
beside it: a representation that was worth learning does better than its own input.

Ours: every feature is brought to mean 0 and deviation 1 over the training items (constant ones are left out); penalty
|w|²/(2 c), `most` training items spread evenly. scikit-learn's solver; the interval is Wilson's, over held-out items.

Errors: a model without features or latents; items without labels; labels of one class.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gencli.config import opt
from gencli.core import Autoencoder, Features, Items, Model
from gencli.errors import GencliError
from gencli.metrics._base import Evidence, ItemMetric, Run, Value, item_rows, spread
from gencli.metrics._shares import share


class LinearProbe(ItemMetric):
    """Held-out accuracy of logistic regression on a model's features."""

    draws: ClassVar[bool] = False
    needs: ClassVar[tuple[type[Any], ...]] = (Features, Autoencoder)

    @dataclass(frozen=True)
    class Config:
        c: float = opt(1.0, "inverse weight of the penalty: larger = less", low=1e-6)
        most: int = opt(10_000, "training items that are fitted, at most", low=2)
        steps: int = opt(1000, "iterations of the solver, at most", low=1)

    def __call__(self, evidence: Evidence) -> list[Value]:
        c, run = self.config, evidence.run
        if run is None or not isinstance(run.model, self.needs):
            kind = "samples in a folder have" if run is None else f"{type(run.model).__name__} has"
            raise GencliError(
                f"linear-probe reads a model's features or latents, {kind} none", "see `gencli list models`"
            )
        made: list[Value] = []
        names = ("linear-probe", "linear-probe[pixels]")
        (train, x_train), (test, x_test) = (
            read(run, seen.items, most, evidence) for seen, most in ((evidence.train, c.most), (evidence.test, None))
        )
        for name, i in zip(names, ("features", "x"), strict=True):
            fit, held = x_train[i], x_test[i]
            seen, steps = predicted(fit, train, held, c.c, c.steps)
            value, around = share(seen == test)
            notes = ["the input itself, to compare with"] * (i == "x") + [f"cut after {steps} steps"] * (
                steps >= c.steps
            )
            facts = {"n_training": len(train), "features": fit.shape[1], "steps": steps}
            note = ", ".join(notes)
            made.append(Value(name, value, around, len(test), "higher", note=note, facts=facts))
        return made


def predicted(
    fit: np.ndarray, labels: np.ndarray, held: np.ndarray, c: float = 1.0, steps: int = 1000
) -> tuple[np.ndarray, int]:
    """The class of each row of `held` by logistic regression on `fit` `(N, D)` with `labels` `(N,)`; the solver's steps."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        raise GencliError(
            "a linear classifier tells classes apart, all items that it is fitted to have one",
            "use data of several classes",
        )
    mean, scale = fit.mean(0), fit.std(0)
    kept = scale > 1e-12 * max(1.0, float(np.abs(fit).max()))
    if not kept.any():
        return np.full(len(held), np.bincount(labels).argmax()), 0
    inside, outside = (((x - mean) / np.where(kept, scale, 1))[:, kept] for x in (fit, held))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of steps says it
        probe = LogisticRegression(C=c, max_iter=steps).fit(inside, labels)
    return np.asarray(probe.predict(outside)), int(probe.n_iter_.max())


def read(run: Run, items: Items, most: int | None, evidence: Evidence) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels `(N,)`, and what is fitted: the model's features and the raw values, `(N, D)` float64 each."""
    labels, features, values = [], [], []
    for indices in spread(len(items), most).split(evidence.batch_size):
        raw = items.batch(indices)
        if "label" not in raw:
            raise GencliError("linear-probe needs labels, these items have none", "give labelled data with --data")
        with torch.no_grad():
            x = run.encode({"x": raw["x"]}, item_rows(evidence.seed, indices, run.model))["x"]
            features.append(representation(run.model, x).flatten(1).double().cpu())
        labels.append(raw["label"])
        values.append(raw["x"].flatten(1).double())
    return torch.cat(labels).numpy(), {"features": torch.cat(features).numpy(), "x": torch.cat(values).numpy()}


def representation(model: Model, x: Tensor) -> Tensor:
    """`(N, …)`: the features that a model offers, else its latents."""
    any_model: Any = model
    if isinstance(model, Features):
        return model.features(x)
    z = any_model.encode(x)
    if not any_model.latent.vocab:
        return z
    quantiser = getattr(model, "quantiser", None)
    return quantiser.lookup(z) if quantiser is not None else F.one_hot(z, any_model.latent.vocab)
