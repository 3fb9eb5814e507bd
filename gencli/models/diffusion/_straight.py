"""What models of straight paths share: x_τ = τ x_0 + (1 − (1 − least) τ) n, from noise (τ = 0) to data (τ = 1).

Velocities point from data to noise, (1 − least) n − x_0, as everything here runs with σ = (1 − (1 − least) τ) / τ; papers
that run τ forward have the opposite sign. Networks are told 1,000 (1 − τ).
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gencli.core import Batch, Rng, Spec
from gencli.models.diffusion._family import ContinuousModel, velocity

SIGMA_MAX = 1000.0  # stands for τ = 0, where x has no finite size
LEAST = 1e-3  # the least σ of a path that ends in the data


class StraightModel(ContinuousModel):
    """A subclass's Config has `time` and, where the path ends in noise of its own, `sigma_min`."""

    def __init__(self, config: Any, spec: Spec, least: float = 0.0) -> None:
        self._keep = 1 - least
        self.sigma_min, self.sigma_max = least or LEAST, SIGMA_MAX
        self.formulation = velocity(lambda s: 1000 * (1 - 1 / (self._keep + s)), least)
        super().__init__(config, spec)

    def sigma_at(self, u: Tensor) -> Tensor:
        """u = 1 − τ, the share of the path that is left."""
        tau = (1 - u.double()).clamp(min=1 / (self._keep + SIGMA_MAX))
        return (1 - self._keep * tau) / tau

    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        if self.config.time == "uniform":
            return super().draw_sigma(n, rng)
        return self.sigma_at(rng.normal((n,)).double().sigmoid())  # logit-normal (arXiv:2403.03206)

    def velocity(self, x: Tensor, tau: Tensor, **cond: Tensor) -> Tensor:
        """dx_τ/dτ, from noise to data, at a point of the path."""
        sigma = (1 - self._keep * tau.double()) / tau.double()
        return -self.predict(x / tau, sigma, **cond)


def optimal_pairs(data: Tensor, noise: Tensor, groups: Tensor | None = None) -> Tensor:
    """The permutation `(N,)` of the noise's rows whose summed squared distance to the data's is least.

    With `groups` `(N,)` rows are exchanged within their group only: noise must not tell a condition.
    """
    chosen = torch.arange(len(data))
    for group in [None] if groups is None else groups.unique():
        rows = chosen if group is None else (groups.cpu() == group.cpu()).nonzero().flatten()  # type: ignore[union-attr]
        cost = torch.cdist(data[rows].flatten(1).double().cpu(), noise[rows].flatten(1).double().cpu()).square()
        _, columns = linear_sum_assignment(cost.numpy())
        chosen = chosen.clone()
        chosen[rows] = rows[torch.from_numpy(columns)]
    return chosen


def labels_of(cond: Batch) -> Tensor | None:
    """The classes of a batch, which noise must not be exchanged across; None without."""
    return cond.get("label")
