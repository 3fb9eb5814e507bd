"""ELBO surgery: yet another way to carve up the variational evidence lower bound (Hoffman & Johnson, 2016).

Offers: image, points, latents

    ELBO = reconstruction − I_q(n; z) − KL(q(z) ‖ p(z)),   q(z) = (1/N) Σ_n q(z | x_n)
    reconstruction = (1/N) Σ_n E_q(z|x_n)[log p(x_n|z)],   I_q(n; z) = (1/N) Σ_n KL(q(z|x_n) ‖ q(z)) ≤ log N

`index-code-mi` is how much a code says of which item it is of, `marginal-kl` how far the codes of all items are from the prior:
a sample's latent can only be like those the decoder knows if this is small. In nats an item, over N held-out items with one
draw each; log q(z) is exact for these N. Where N is small for the codes, I is log N and nothing can be said of it: the note
says so. Intervals are over items (Student's t), for this q(z).

The two together are the rate, in closed form where the prior is N(0, I) (see `rate-distortion`).

Raises: GencliError for a model whose posterior is no Gaussian over one flat latent, or whose classes are conditions of it.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor

from gencli.core import Items, Posterior, Rng
from gencli.metrics._base import ModelMetric, Run, Value, mean_with_error
from gencli.metrics._posterior import Inferred, aggregated, asks_posterior, inferred

_NEAR = 0.05  # share of log N from which the mutual information is as good as its limit


class ElboSurgery(ModelMetric):
    """The ELBO in three terms, of which one is about all items together."""

    needs: ClassVar[type[Any]] = Posterior

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> list[Value]:
        self.check(run)
        asks_posterior(run.model, self.public_name())
        made = inferred(run, data, rng, n, batch_size)
        count = len(made.z)
        inside, outside = self.parts(made)
        limit = math.log(count)
        note = f"at most log {count:,} = {limit:.2f}"
        if float(inside.mean()) > (1 - _NEAR) * limit:
            note += ", which it is: raise -n to tell it from the marginal KL"
        rows = (
            ("average-reconstruction", made.elbo + inside + outside, "higher", ""),
            ("index-code-mi", inside, "higher", note),
            ("marginal-kl", outside, "lower", ""),
            ("elbo", made.elbo, "higher", ""),
        )
        values = []
        for name, terms, better, words in rows:
            mean, error, around = mean_with_error(terms.numpy())
            facts = {"standard_error": error, "closed_form": made.closed}
            values.append(Value(name, mean, around, count, better, "nats", "", words, facts))  # type: ignore[arg-type]
        return values

    @staticmethod
    def parts(made: Inferred) -> tuple[Tensor, Tensor]:
        """The two parts of an item's KL divergence, `(N,)` each: inside the aggregated posterior, and from it to the prior."""
        inside = made.log_q - aggregated(made.z, made.q)
        return inside, made.rates() - inside
