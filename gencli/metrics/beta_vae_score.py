"""beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017).

Offers: image, encode, factors

A factor k is drawn, and L pairs of items that are alike in k; z = (1/L) Σ_l |c_l − c′_l| of their codes c. The score is the
accuracy of a linear classifier that tells k from z: a number of the latent that holds k alone is 0 there. L = 64, 10,000 such
votes to fit and 5,000 to test, as in disentanglement_lib. Guessing scores 1 / F; `[above chance]` is
(score − 1/F) / (1 − 1/F).

Ours: pairs are made of N items, encoded once; z is brought to mean 0 and deviation 1 before logistic regression (the metric
`linear-probe`'s). The interval is Wilson's, over test votes. An entangled code can score 1 too: see `factor-vae-score`, `mig`.

Raises: GencliError for data without factors, and for models without real latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gencli.config import opt
from gencli.core import Autoencoder, Items, Rng
from gencli.metrics._base import ModelMetric, Run, Value, base_seed
from gencli.metrics._factors import Alike, Represented, represented, scored
from gencli.metrics.linear_probe import predicted

_BLOCK = 500  # votes made together


class BetaVaeScore(ModelMetric):
    """How well the fixed factor is told from the mean difference of codes."""

    needs: ClassVar[type[Any]] = Autoencoder

    @dataclass(frozen=True)
    class Config:
        batch: int = opt(64, "pairs behind a vote", low=1)
        train: int = opt(10_000, "votes that the classifier is fitted to", low=10)
        test: int = opt(5_000, "votes that it is tested on", low=10)

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> list[Value]:
        self.check(run)
        seen = represented(run, data, rng, n, batch_size, self.public_name())
        c = self.config
        x, y = votes(seen, c.train + c.test, c.batch, np.random.default_rng(base_seed(rng, "votes")))
        guessed, _ = predicted(x[: c.train], y[: c.train], x[c.train :])
        return scored(self.public_name(), guessed == y[c.train :], seen)


def votes(seen: Represented, count: int, pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Mean differences `(count, D)` and which factor was fixed in each `(count,)`."""
    alike, n = Alike(seen.factors), len(seen.codes)
    fixed = rng.integers(len(seen.names), size=count)
    made = np.empty((count, seen.codes.shape[1]))
    for factor in range(len(seen.names)):
        rows = np.flatnonzero(fixed == factor)
        for part in np.array_split(rows, max(1, len(rows) // _BLOCK)):
            first = rng.integers(n, size=(len(part), pairs))
            second = alike.draw(first, factor, rng)
            made[part] = np.abs(seen.codes[first] - seen.codes[second]).mean(1)
    return made, fixed
