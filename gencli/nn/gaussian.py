"""Independent normal numbers: draws by reparameterisation, densities, divergences in closed form, and mixtures of them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class DiagonalGaussian(NamedTuple):
    """Independent normal numbers, `(N, dim)` each."""

    mean: Tensor
    log_var: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """z = μ + σ ε, through which gradients flow to μ and σ."""
        return self.mean + (0.5 * self.log_var).exp() * noise

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """KL(q ‖ other) `(N,)` in nats; N(0, I) if no other is given."""
        return self.kl_each(other).flatten(1).sum(1)

    def kl_each(self, other: DiagonalGaussian | None = None) -> Tensor:
        """The same for every number of the latent, `(N, dim)`."""
        if other is None:
            return 0.5 * (self.mean.square() + self.log_var.exp() - 1 - self.log_var)
        apart = (self.mean - other.mean).square() * (-other.log_var).exp()
        wider = self.log_var - other.log_var
        return 0.5 * (apart + wider.exp() - 1 - wider)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) `(N,)` in nats."""
        return self.log_prob_each(z).flatten(1).sum(1)

    def log_prob_each(self, z: Tensor) -> Tensor:
        """log q of every number of the latent."""
        apart = (z - self.mean).square() * (-self.log_var).exp()
        return -0.5 * (apart + self.log_var + math.log(2 * math.pi))


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) `(N,)` in nats."""
    return DiagonalGaussian(torch.zeros_like(z), torch.zeros_like(z)).log_prob(z)


def mixture_log_prob(z: Tensor, log_weights: Tensor, parts: DiagonalGaussian) -> Tensor:
    """log Σ_k w_k N(z; μ_k, σ_k²) `(N,)` of z `(N, dim)` under K components `(K, dim)` with normalised weights `(K,)`."""
    each = DiagonalGaussian(parts.mean[None], parts.log_var[None]).log_prob_each(z[:, None]).sum(-1)  # (N, K)
    return (each + log_weights).logsumexp(1)
