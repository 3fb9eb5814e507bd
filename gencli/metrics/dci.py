"""A Framework for the Quantitative Evaluation of Disentangled Representations (Eastwood & Williams, 2018).

Offers: image, encode, factors

    R_ij  how important number i of the latent is in predicting factor j
    disentanglement = Σ_i ρ_i (1 − H_F(R_i· / Σ_j R_ij)),   ρ_i = Σ_j R_ij / Σ R
    completeness    = Σ_j γ_j (1 − H_D(R_·j / Σ_i R_ij)),   γ_j = Σ_i R_ij / Σ R
    informativeness = mean accuracy of the predictions on items held out,   H_K the entropy in units of log K

Disentanglement is 1 if no number of the latent tells of two factors, completeness if no factor is told by two numbers. The
factors are classes, and completeness is weighted, as in disentanglement_lib; two thirds of the N items are fitted, one third
is tested. `dci-informativeness[above chance]` puts guessing the commonest value at 0.

R is the importance (mean decrease of impurity) in a random forest, one of the paper's two; every split may use any number, so
that a factor is looked for where it is. Ours: not disentanglement_lib's boosted trees, of which a factor of 40 values needs
4,000. No interval: it would take as many forests.

Raises: GencliError for data without factors, and for models without real latents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from gencli.config import opt
from gencli.core import Autoencoder, Items, Rng
from gencli.metrics._base import ModelMetric, Run, Value, base_seed
from gencli.metrics._factors import Represented, represented


class Dci(ModelMetric):
    """Disentanglement, completeness and informativeness."""

    needs: ClassVar[type[Any]] = Autoencoder

    @dataclass(frozen=True)
    class Config:
        trees: int = opt(20, "trees of a factor's forest", low=1)

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> list[Value]:
        self.check(run)
        seen = represented(run, data, rng, n, batch_size, self.public_name())
        order = np.random.default_rng(base_seed(rng, "order")).permutation(len(seen.codes))
        seen = seen._replace(codes=seen.codes[order], factors=seen.factors[order])
        important, right, chance = forests(seen, self.config.trees, base_seed(rng, "trees") % 2**32)
        above = (right - chance) / (1 - chance)
        rows = {
            "disentanglement": concentrated(important),
            "completeness": concentrated(important.T),
            "informativeness": right.mean(),
            "informativeness[above chance]": above.mean(),
        }
        facts = {
            "importance": important.round(6).tolist(),
            "accuracy": dict(zip(seen.names, right.round(6).tolist(), strict=True)),
        }
        n_items = len(seen.codes)
        return [
            Value(f"dci-{k}", float(v), None, n_items, "higher", note=seen.note, facts=facts) for k, v in rows.items()
        ]


def forests(seen: Represented, trees: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Importance `(D, F)`; accuracy on the last third of the items, and that of the commonest value, `(F,)` each."""
    from sklearn.ensemble import RandomForestClassifier

    cut = len(seen.codes) * 2 // 3
    important, right, chance = [], [], []
    for values in seen.factors.T:
        forest = RandomForestClassifier(trees, max_features=None, random_state=seed).fit(seen.codes[:cut], values[:cut])
        important.append(forest.feature_importances_)
        right.append((forest.predict(seen.codes[cut:]) == values[cut:]).mean())
        chance.append((np.bincount(values[:cut]).argmax() == values[cut:]).mean())
    return np.stack(important, 1), np.array(right), np.array(chance)


def concentrated(important: np.ndarray) -> float:
    """1 − the entropy of each row of `(A, B)` in units of log B, weighted by the row's sum."""
    sums = important.sum(1)
    if not sums.any():
        return 0.0
    p = important / np.where(sums > 0, sums, 1)[:, None]
    entropy = -(p * np.log(np.where(p > 0, p, 1))).sum(1) / np.log(important.shape[1])
    return float((sums / sums.sum() * (1 - entropy)).sum())
