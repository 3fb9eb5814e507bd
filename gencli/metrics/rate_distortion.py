"""Fixing a Broken ELBO (Alemi et al., 2017). arXiv:1711.00464

Offers: image, points, latents

    rate R = E_x KL(q(z|x) ‖ p(z)),   distortion D = −E_x E_q(z|x)[log p(x|z)],   −ELBO = D + R

One point of a model's rate–distortion curve, in nats an item; models trained with other weights of the KL divergence (the
recipe's β) are the curve's other points. Means over N held-out items with standard errors and 95 % intervals (Student's t)
over items. The rate has its closed form where the posterior is Gaussian and the prior N(0, I), else it is log q − log p at
one draw an item. D is −ELBO − R, so that the sum is exact whatever the noise.

Among the facts: `kl_per_dimension`, the rate of every number of the latent, where they are independent under the prior.

Raises: GencliError for a model without a posterior over one flat latent.
"""

from __future__ import annotations

from typing import Any, ClassVar

from gencli.core import Items, Posterior, Rng
from gencli.metrics._base import ModelMetric, Run, Value, mean_with_error
from gencli.metrics._posterior import inferred

IDLE = 0.01  # nats below which a number of the latent carries nothing to speak of


class RateDistortion(ModelMetric):
    """What a latent costs, and what is lost."""

    needs: ClassVar[type[Any]] = Posterior

    def __call__(self, run: Run, data: Items, rng: Rng, n: int | None = None, batch_size: int = 64) -> list[Value]:
        self.check(run)
        made = inferred(run, data, rng, n, batch_size)
        rates = made.rates()
        each = made.dimensions()
        used = "" if each is None else f"{int((each > IDLE).sum())} of {len(each)} numbers carry more than {IDLE} nats"
        values = []
        for name, terms, note in (("rate", rates, used), ("distortion", -made.elbo - rates, "")):
            mean, error, around = mean_with_error(terms.numpy())
            facts: dict[str, Any] = {"standard_error": error, "closed_form": made.closed}
            if name == "rate" and each is not None:
                facts["kl_per_dimension"] = [round(float(nats), 6) for nats in each]
            values.append(Value(name, mean, around, len(rates), "lower", "nats", note=note, facts=facts))
        return values
