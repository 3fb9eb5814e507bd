"""What metrics of variational autoencoders share: posteriors of items, draws of them, and log densities, in float64.

An item's noise is its own, so that the batch size changes nothing. Nats are of the data as the model sees them: of binary
images where a codec makes them binary, of grey levels where it scales them.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gencli.core import Items, Posterior, Rng, full_precision
from gencli.errors import GencliError
from gencli.metrics._base import Run, base_seed, conditions, item_rows, spread
from gencli.metrics.bpd import encode_with_volume, is_mass
from gencli.nn.gaussian import DiagonalGaussian, standard_normal

ACTIVE = 0.01  # variance of a unit's mean above which it is active (Burda et al.)
_BLOCK = 512  # draws whose aggregated density is computed together


class Inferred(NamedTuple):
    """Posteriors of N items and one draw of each.

    Args:
        q: of the items, `(N, dim)`; where the posterior is not gaussian, that of the draw before it is changed.
        z: the draws `(N, dim)`.
        log_q: log q(z|x) `(N,)`.
        log_p: log p(z) `(N,)`.
        elbo: an estimate of each item's `(N,)`, by noise of its own.
        standard: the prior is N(0, I).
        gaussian: `q` is q(z|x).
    """

    q: DiagonalGaussian
    z: Tensor
    log_q: Tensor
    log_p: Tensor
    elbo: Tensor
    standard: bool
    gaussian: bool

    @property
    def closed(self) -> bool:
        """Whether the KL divergence of an item has a closed form."""
        return self.standard and self.gaussian

    def rates(self) -> Tensor:
        """KL(q(z|x) ‖ p(z)) `(N,)`: in closed form, or at the draw."""
        return self.q.kl() if self.closed else self.log_q - self.log_p

    def dimensions(self) -> Tensor | None:
        """The KL divergence of every number of the latent `(dim,)`, where they are independent under the prior too."""
        return self.q.kl_each().mean(0) if self.closed else None


@torch.no_grad()
def inferred(run: Run, data: Items, rng: Rng, n: int | None, batch_size: int, bounds: bool = True) -> Inferred:
    """Posteriors of `n` items spread evenly; without `bounds` the ELBO is left at 0."""
    model: Any = run.model
    seed, parts = base_seed(rng, "posterior"), []
    for indices in spread(len(data), n).split(batch_size):
        noise = item_rows(seed, indices, model)
        batch, volume = encode_with_volume(run, data.batch(indices), noise.at("encode"))
        given = conditions(run, batch)
        with full_precision(model.device):
            parts.append(_of_batch(model, batch["x"], given, noise, volume, bounds))
    mean, log_var, z, log_q, log_p, elbo = (torch.cat(columns) for columns in zip(*parts, strict=True))
    finite = torch.isfinite(elbo) & torch.isfinite(log_q) & torch.isfinite(log_p)
    if not finite.all():
        raise GencliError(f"the bound of {int((~finite).sum())} of {len(finite)} items is not finite", "check the run")
    standard = torch.allclose(log_p, standard_normal(z), rtol=1e-5, atol=1e-4)
    q = DiagonalGaussian(mean, log_var)
    return Inferred(q, z, log_q, log_p, elbo, standard, bool(getattr(model, "gaussian", True)))


def _of_batch(
    model: Any, x: Tensor, given: dict[str, Tensor], noise: Rng, volume: Tensor, bounds: bool
) -> list[Tensor]:
    exact = torch.float32 if x.device.type == "mps" else torch.float64
    found = model.posterior(x, **given)
    q = DiagonalGaussian(found.mean.to(exact), found.log_var.to(exact))
    draw = noise.at("draw").normal(q.mean.shape).to(q.mean)
    if getattr(model, "gaussian", True):
        z = q.draw(draw)
        log_q = q.log_prob(z)
    else:
        base, context = model.infer(x, **given)
        z, log_q = model.draw_posterior(DiagonalGaussian(*(part.to(exact) for part in base)), context, draw)
    elbo = torch.zeros(len(x), dtype=exact)
    if bounds:
        nats = model.log_prob(x, noise.at("log-prob"), samples=1, **given).double().cpu()
        elbo = nats if is_mass(model) else nats + volume
    made = (q.mean, q.log_var, z, log_q, model.log_prior(z, **given), elbo)
    return [part.double().cpu() for part in made]


def aggregated(z: Tensor, q: DiagonalGaussian) -> Tensor:
    """log q(z) `(M,)` of the aggregated posterior (1/N) Σ_n q(z | x_n), which is a mixture of N Gaussians `(N, dim)`."""
    precision = (-q.log_var).exp()
    constant = -0.5 * (q.log_var + math.log(2 * math.pi)).sum(1) - math.log(len(q.mean))
    made = []
    for part in z.split(_BLOCK):
        apart = torch.zeros(len(part), len(q.mean), dtype=z.dtype)
        for column, mean, sharp in zip(part.T, q.mean.T, precision.T, strict=True):
            apart += (
                (column[:, None] - mean).square_().mul_(sharp)
            )  # no expanded square: narrow posteriors would lose it
        made.append((constant - 0.5 * apart).logsumexp(1))
    return torch.cat(made)


def asks_posterior(model: Any, metric: str) -> None:
    """Refuse a model whose posterior is no Gaussian of its own latent."""
    if not isinstance(model, Posterior) or not getattr(model, "gaussian", True):
        raise GencliError(
            f"metric '{metric}' needs a density of every latent given every item, {type(model).__name__}'s posterior "
            "is no Gaussian",
            "use rate-distortion and active-units",
        )


def active(means: Tensor, least: float = ACTIVE) -> tuple[Tensor, int]:
    """Variance over items of every number's posterior mean `(dim,)`, and how many are above `least`."""
    spread_of = means.var(0) if len(means) > 1 else torch.zeros_like(means[0])
    return spread_of, int((spread_of > least).sum())
