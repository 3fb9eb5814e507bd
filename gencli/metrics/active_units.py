"""Importance Weighted Autoencoders (Burda et al., 2015). arXiv:1509.00519

Offers: image, points, encode

    A_u = Var_x(E_q(z|x)[z_u]),   active units = |{u : A_u > 0.01}|

How many numbers of a latent change with the item at all, by the variance over N held-out items of their posterior mean, which
is what a model's `encode` gives. The others are the prior's whatever the item: the posterior has collapsed there. The
interval is none: the count is of this model. Among the facts: `activity`, A_u of every unit.

Raises: GencliError for a model that encodes nothing, and for codes that are no real numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from gencli.config import opt
from gencli.core import Autoencoder, Items, Rng
from gencli.metrics._base import ModelMetric, Run, Value, base_seed, spread
from gencli.metrics._factors import encoded
from gencli.metrics._posterior import ACTIVE, active


class ActiveUnits(ModelMetric):
    """How much of a latent is used."""

    needs: ClassVar[type[Any]] = Autoencoder

    @dataclass(frozen=True)
    class Config:
        least: float = opt(ACTIVE, "variance of a unit's mean above which it is active", low=0)

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> Value:
        self.check(run)
        codes = encoded(run, data, spread(len(data), n), base_seed(rng, "active-units"), batch_size)
        activity, count = active(codes, self.config.least)
        facts = {"units": len(activity), "activity": [round(float(a), 6) for a in activity]}
        return Value("active-units", count, None, len(codes), "higher", f"of {len(activity)}", facts=facts)
