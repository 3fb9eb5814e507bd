"""Importance Weighted Autoencoders (Burda et al., 2015). arXiv:1509.00519

Offers: image, points, likelihood

    ELBO = E_q[log p(x, z) − log q(z|x)],   IWAE-k = E log (1/k) Σ p(x, z_i) / q(z_i|x),   ELBO ≤ IWAE-k ≤ IWAE-(k+1) ≤ log p(x)

The mean over N items of a model's bound, in nats and in bits per dimension, with standard error and 95 % interval
(Student's t) over items. `samples` is k; 5,000 in the paper. Draws are made one after the other, so that memory is that of
one. An exact likelihood is called `log-likelihood`. Bits, codecs and what a bound is are those of the metric `bpd`, which
this one asks.

Raises: GencliError for a model without a likelihood, and for one that is not a number somewhere.
"""

from __future__ import annotations

import math
from dataclasses import replace

from gencli.core import Items, Rng
from gencli.metrics._base import Run, Value
from gencli.metrics.bpd import Bpd


class Elbo(Bpd):
    """A model's lower bound of log p(x)."""

    def __call__(  # type: ignore[override]
        self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64
    ) -> list[Value]:
        bits = super().__call__(run, data, rng, n, batch_size)
        nats = bits.facts["dimensions"] * math.log(2)
        error, around = bits.facts["standard_error"], bits.interval
        samples = self.config.samples
        name = "elbo" if samples == 1 else f"iwae-{samples}"
        if not bits.facts["estimate"].startswith(("ELBO", "IWAE")):
            name = "log-likelihood"
        whole = replace(
            bits,
            name=name + bits.name.removeprefix("bpd"),
            value=-bits.value * nats,
            interval=None if around is None else (-around[1] * nats, -around[0] * nats),
            unit="nats",
            better="higher",
            facts={**bits.facts, "standard_error": None if error is None else error * nats},
        )
        return [whole, bits]
