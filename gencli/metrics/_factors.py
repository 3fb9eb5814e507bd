"""What disentanglement metrics share: codes of items and the factors that the items were made from.

A set with factors says of every item in which of its values each factor is (`factors` of its split). N items are drawn at
random from the split and encoded once; every pair and group that a metric asks for is made of these. disentanglement_lib
(Locatello et al., 2018; arXiv:1811.12359), whose definitions and constants these metrics have where nothing else is said,
draws new images each time: N = 10,000 is its number for what it fits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gencli.core import Autoencoder, Items, Rng
from gencli.errors import GencliError
from gencli.metrics._base import Run, Value, base_seed, item_rows
from gencli.metrics._shares import share

USUAL = 10_000


class Represented(NamedTuple):
    """Codes and factors of N items.

    Args:
        codes: `(N, D)` float64, the means of posteriors.
        factors: `(N, F)`, whole numbers from 0.
        names: of the factors.
    """

    codes: np.ndarray
    factors: np.ndarray
    names: tuple[str, ...]

    @property
    def note(self) -> str:
        """What a reader must be told of N."""
        n = len(self.codes)
        return f"{n:,} items; {USUAL:,} are usual: -n {USUAL}" if n < USUAL else ""


def represented(run: Run, data: Items, rng: Rng, n: int | None, batch_size: int, metric: str) -> Represented:
    """Codes and factors of `n` items drawn at random (all by default).

    Raises:
        GencliError: the data have no factors or one, the model no codes of two real numbers or more.
    """
    known: Mapping[str, Tensor] = getattr(data, "factors", {})
    varied = {name: values for name, values in known.items() if int(values.max()) > int(values.min())}
    if len(varied) < 2:
        raise GencliError(
            f"metric '{metric}' needs data whose factors are known, these have {len(varied) or 'none'}",
            "train on sprites: --data sprites",
        )
    if not isinstance(run.model, Autoencoder):
        raise GencliError(
            f"metric '{metric}' reads a model's latents, {type(run.model).__name__} has none",
            "see `gencli list models`",
        )
    seed, total = base_seed(rng, "factors"), len(data)
    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed))
    chosen = order[: total if n is None else min(n, total)].sort().values
    codes = encoded(run, data, chosen, seed, batch_size)
    if codes.shape[1] < 2:
        raise GencliError(
            f"metric '{metric}' compares the numbers of a latent, this one has {codes.shape[1]}", "train with --dim 2"
        )
    table = torch.stack([values[chosen].long() for values in varied.values()], 1)
    return Represented(codes.numpy(), table.numpy(), tuple(varied))


@torch.no_grad()
def encoded(run: Run, data: Items, chosen: Tensor, seed: int, batch_size: int) -> Tensor:
    """Codes `(N, D)` in float64 of the chosen items."""
    model: Any = run.model
    if model.latent.vocab:
        raise GencliError(
            f"{type(model).__name__}'s codes are no real numbers but of {model.latent.vocab} values",
            "use a model of real latents, such as vae",
        )
    parts = []
    for indices in chosen.split(batch_size):
        x = run.encode({"x": data.batch(indices)["x"]}, item_rows(seed, indices, model))["x"]
        parts.append(model.encode(x).flatten(1).double().cpu())
    return torch.cat(parts)


class Alike:
    """Finds items of one value of a factor, from rows `(N, F)`."""

    def __init__(self, factors: np.ndarray) -> None:
        self.factors = factors
        self._orders = np.argsort(factors, axis=0, kind="stable")
        sorted_ = np.take_along_axis(factors, self._orders, 0)
        self._starts = [np.searchsorted(sorted_[:, k], factors[:, k], "left") for k in range(factors.shape[1])]
        self._ends = [np.searchsorted(sorted_[:, k], factors[:, k], "right") for k in range(factors.shape[1])]

    def draw(self, items: np.ndarray, factor: int, rng: np.random.Generator) -> np.ndarray:
        """For each of `items` another drawn from those with its value of the factor, itself among them."""
        start, end = self._starts[factor][items], self._ends[factor][items]
        return self._orders[:, factor][start + (rng.random(items.shape) * (end - start)).astype(int)]


def scored(name: str, right: np.ndarray, seen: Represented, words: str = "") -> list[Value]:
    """The share of votes `(V,)` that are right, and the same on a scale where guessing the factor is 0."""
    factors, n = len(seen.names), len(seen.codes)
    value, around = share(right)
    note = ". ".join(filter(None, [words, seen.note]))
    facts = {"votes": len(right), "factors": list(seen.names), "chance": 1 / factors}
    low, high = (above_chance(end, factors) for end in around)
    return [
        Value(name, value, around, n, "higher", note=note, facts=facts),
        Value(f"{name}[above chance]", above_chance(value, factors), (low, high), n, "higher", note=note, facts=facts),
    ]


def above_chance(accuracy: float, classes: int) -> float:
    """0 for guessing one of `classes`, 1 for always right."""
    return (accuracy - 1 / classes) / (1 - 1 / classes)
