"""Disentangling by Factorising (Kim & Mnih, 2018). arXiv:1802.05983

Offers: image, encode, factors

A factor k and one of its values are drawn, and L items that have it; d is the number of the latent whose variance over them,
divided by its variance over all items, is least. A majority vote maps d to k, and the score is its accuracy. L = 64, 10,000
such votes to count and 5,000 to test, as in disentanglement_lib, from where numbers of the latent are left out whose deviation
over all items is below 0.05: collapsed ones would always win. Guessing scores 1 / F; `[above chance]` is
(score − 1/F) / (1 − 1/F). A latent without any active number scores as guessing.

Ours: items are drawn from N that were encoded once. The interval is Wilson's, over test votes.

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

_BLOCK = 500


class FactorVaeScore(ModelMetric):
    """How well the fixed factor is told from the number of the latent that varies least."""

    needs: ClassVar[type[Any]] = Autoencoder

    @dataclass(frozen=True)
    class Config:
        batch: int = opt(64, "items behind a vote", low=2)
        train: int = opt(10_000, "votes that are counted", low=10)
        test: int = opt(5_000, "votes that are tested", low=10)
        least: float = opt(0.05, "deviation below which a number of the latent is left out", low=0)

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> list[Value]:
        self.check(run)
        seen = represented(run, data, rng, n, batch_size, self.public_name())
        c, draw = self.config, np.random.default_rng(base_seed(rng, "votes"))
        kept = seen.codes.std(0) > c.least
        factors, dims = len(seen.names), int(kept.sum())
        if dims:
            least, fixed = votes(seen._replace(codes=seen.codes[:, kept]), c.train + c.test, c.batch, draw)
            table = np.zeros((dims, factors), int)
            np.add.at(table, (least[: c.train], fixed[: c.train]), 1)
            right = table.argmax(1)[least[c.train :]] == fixed[c.train :]
        else:
            right = draw.integers(factors, size=c.test) == 0
        return scored(self.public_name(), right, seen, f"{dims} of {len(kept)} numbers vary")


def votes(seen: Represented, count: int, size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The number of the latent with the least relative variance and the fixed factor, `(count,)` each."""
    alike, n = Alike(seen.factors), len(seen.codes)
    fixed = rng.integers(len(seen.names), size=count)
    least, whole = np.empty(count, int), seen.codes.var(0, ddof=1)
    for factor in range(len(seen.names)):
        rows = np.flatnonzero(fixed == factor)
        for part in np.array_split(rows, max(1, len(rows) // _BLOCK)):
            first = np.repeat(rng.integers(n, size=(len(part), 1)), size, 1)
            items = alike.draw(first, factor, rng)
            least[part] = (seen.codes[items].var(1, ddof=1) / whole).argmin(1)
    return least, fixed
