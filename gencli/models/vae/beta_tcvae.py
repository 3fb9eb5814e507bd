"""Isolating Sources of Disentanglement in Variational Autoencoders (Chen et al., 2018). arXiv:1802.04942

Offers: sample, bound, encode, reconstruct

    E_x KL(q(z|x) ‖ p(z)) = I(x; z) + KL(q(z) ‖ Π_j q(z_j)) + Σ_j KL(q(z_j) ‖ p(z_j))
    loss = E_q(z|x)[−log p(x|z)] + α I(x; z) + β TC + γ Σ_j KL_j,   q(z) = (1/N) Σ_n q(z|x_n)

TC, the total correlation, is what makes the numbers of a latent dependent. Each of the three is one draw's difference of
logs, so that α = β = γ = 1 is log q(z|x) − log p(z) whatever q(z) is estimated to be. From a batch of M of the N items, with z
a draw for x_i,

    weighted     q(z) ≈ 1/(N M) Σ_j q(z|x_j)
    stratified   q(z) ≈ 1/N q(z|x_i) + (N − 1)/(N (M − 1)) Σ_{j≠i} q(z|x_j),   without bias

and q(z_j) the same with one number of the latent. `weighted` is the paper's minibatch-weighted sampling, a lower bound in
expectation. Of stratified sampling the paper gives one of the others the weight (N − M + 1)/(N (M − 1)) and the rest
1/(M − 1); ours is its mean over the order of the batch, which estimates the same with less noise. (In the released code those
weights stand in the first two columns of the matrix, not on its diagonal, whatever item a row is of.)

Paper: β = 6 for dSprites, α = γ = 1, 10 latents, batches of 2,048. N is the size of the training split.
Logged besides the ELBO's terms: `mi`, `tc`, `dimwise`. Their sum is a one-draw estimate of `kl`, which is in closed form.

Raises GencliError as `vae` does; for a learned prior, since p(z) must be a product; for the objective iwae; for a stratified
batch of one item.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Losses, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae._family import GaussianVAE, Terms
from gencli.nn.gaussian import DiagonalGaussian, standard_normal

Estimator = Literal["weighted", "stratified"]


class Aggregated(NamedTuple):
    """Logs at the draws z, `(M,)`: of q(z|x), the aggregated posterior q(z), the product of its marginals, and p(z)."""

    given: Tensor
    joint: Tensor
    marginals: Tensor
    prior: Tensor


class BetaTCVAE(GaussianVAE):
    """A VAE whose KL divergence is weighed in three parts."""

    couples = True  # q(z) is estimated from the batch
    training_only: ClassVar[tuple[str, ...]] = ("items",)
    items: Tensor  # of the training split

    @dataclass(frozen=True)
    class Config(GaussianVAE.Config):
        alpha: float = opt(1.0, "weight of the mutual information of x and z", low=0)
        beta: float = opt(6.0, "weight of the total correlation", low=0)
        gamma: float = opt(1.0, "weight of the numbers' own KL divergences", low=0)
        estimator: Estimator = opt("weighted", "of q(z) from a batch")

    def __init__(self, config: Config, spec: Spec) -> None:
        if config.objective == "iwae":
            raise GencliError(
                "beta-tcvae weighs parts of a KL divergence, and the objective iwae has none",
                "use --objective elbo, or the model vae",
            )
        if config.prior != "standard":
            raise GencliError(
                f"beta-tcvae needs a prior of independent numbers, {config.prior} is none", "use --prior standard"
            )
        super().__init__(config, spec)
        self.register_buffer("items", torch.zeros((), dtype=torch.long))

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        super().initialise(data, count, rng)
        self.items.fill_(count)

    def objective(self, terms: Terms, turn: Turn) -> tuple[Tensor, Losses]:
        config, logs = self.config, aggregated(terms.q, terms.z, int(self.items), self.config.estimator)
        information, correlation = logs.given - logs.joint, logs.joint - logs.marginals
        dimwise = logs.marginals - logs.prior
        penalty = config.alpha * information + config.beta * correlation + config.gamma * dimwise
        parts = {"mi": information, "tc": correlation, "dimwise": dimwise}
        shown = {name: part.mean().detach() for name, part in parts.items()}
        return terms.recon + self.kl_weight(turn) * penalty, shown


def aggregated(q: DiagonalGaussian, z: Tensor, items: int, estimator: Estimator) -> Aggregated:
    """Of draws z `(M, dim)`, one of each posterior q of a batch, in a data set of `items`."""
    assert items > 0, "initialise tells how many items there are"
    rows = DiagonalGaussian(q.mean[None], q.log_var[None])
    each = rows.log_prob_each(z[:, None])  # (M, M, dim): log q of z_i's number, given x_j
    weights = log_weights(len(z), items, estimator, z.device)
    joint = (each.sum(2) + weights).logsumexp(1)
    marginals = (each + weights[..., None]).logsumexp(1).sum(1)
    return Aggregated(q.log_prob(z), joint, marginals, standard_normal(z))


def log_weights(batch: int, items: int, estimator: Estimator, device: torch.device | str = "cpu") -> Tensor:
    """`(M, M)`, row i: how much of q(z_i) each item's posterior stands for."""
    if estimator == "weighted":
        return torch.full((batch, batch), -math.log(items * batch), device=device)
    if batch < 2:
        raise GencliError(
            "a stratified estimate of q(z) needs batches of two items or more, got 1", "use --estimator weighted"
        )
    others = torch.full((batch, batch), math.log((items - 1) / (items * (batch - 1))), device=device)
    return others.fill_diagonal_(-math.log(items))
