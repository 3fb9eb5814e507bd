"""Priors of variational autoencoders: what p(z) is, over flat latents `(N, dim)`.

    standard         N(0, I)
    mixture          Σ_k w_k N(μ_k, diag σ_k²), all of it learned
    vampprior        (1/K) Σ_k q(z | u_k): the posterior at K pseudo-inputs u_k (Tomczak & Welling, 2017; arXiv:1705.07120)
    flow             N(f(z); 0, I) |det df/dz|, f masked autoregressive layers (`nn/affine_autoregressive.py`), in turn from
                     the first number and from the last; N(0, I) at first
    autoregressive   Π_i Σ_k w_ik N(z_i; μ_ik, σ_ik²), all of which a masked network makes of the numbers before z_i

The mean ELBO is greatest when p(z) is the aggregated posterior (1/N) Σ_n q(z | x_n), of which a vampprior is a part. Whatever
has parameters is trained with the model. Pseudo-inputs begin as items of the training split and are learned, within the
data's range, or with `pseudo_inputs = "data"` stay those items, as in the paper's comparison; ours: learned ones begin there
too. A prior is the same for all classes; pseudo-inputs keep the classes of the items that they were.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from gencli.core import Batch, Rng, Spec
from gencli.nn.affine_autoregressive import AffineAutoregressive
from gencli.nn.bijection import Chain
from gencli.nn.gaussian import DiagonalGaussian, mixture_log_prob, standard_normal
from gencli.nn.masked_mlp import MaskedMlp

PriorName = Literal["standard", "mixture", "vampprior", "flow", "autoregressive"]
Density = Callable[[Tensor], Tensor]
"""log p of latents `(N, dim)`, `(N,)` in nats."""


class Prior(nn.Module, ABC):
    """A distribution over latents.

    Args:
        config: the model's settings, of which it reads its own.
        spec: of the model's data and conditions.
        posterior: x and conditions to q(z|x), by the model's encoder.
    """

    def __init__(self, config: Any, spec: Spec, posterior: Callable[..., DiagonalGaussian]) -> None:
        super().__init__()
        self.dim: int = config.dim

    @abstractmethod
    def density(self, **cond: Tensor) -> Density:
        """log p as a function of z, with all that does not depend on z computed once, here."""

    @abstractmethod
    def draw(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """z `(n, dim)`."""

    def log_prob(self, z: Tensor, **cond: Tensor) -> Tensor:
        """log p(z) `(N,)` in nats."""
        return self.density(**cond)(z)

    def kl(self, q: DiagonalGaussian, **cond: Tensor) -> Tensor | None:
        """KL(q ‖ p) `(N,)` in nats where it has a closed form."""
        return None

    def initialise(self, data: Iterator[Batch], rng: Rng) -> None:
        """Before the first step: what needs data."""


class Standard(Prior):
    def density(self, **cond: Tensor) -> Density:
        return standard_normal

    def draw(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        return rng.normal((n, self.dim))

    def kl(self, q: DiagonalGaussian, **cond: Tensor) -> Tensor:
        return q.kl()


class _Components(Prior):
    """A mixture of Gaussians: a subclass says of which."""

    @abstractmethod
    def components(self) -> tuple[Tensor, DiagonalGaussian]:
        """log weights `(K,)`, normalised, and the components, `(K, dim)`."""

    def density(self, **cond: Tensor) -> Density:
        log_weights, parts = self.components()
        return lambda z: mixture_log_prob(z, log_weights, parts)

    def draw(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        log_weights, parts = self.components()
        chosen = rng.at("component").multinomial(log_weights.exp().expand(n, -1))
        noise = rng.at("noise").normal((n, self.dim)).to(parts.mean)
        return DiagonalGaussian(parts.mean[chosen], parts.log_var[chosen]).draw(noise)


class Mixture(_Components):
    """Begins as one N(0, I), or as K Gaussians of variance ½ whose means have that variance too."""

    def __init__(self, config: Any, spec: Spec, posterior: Callable[..., DiagonalGaussian]) -> None:
        super().__init__(config, spec, posterior)
        means, log_vars = _apart(config.components, config.dim)
        self.means, self.log_vars = nn.Parameter(means), nn.Parameter(log_vars)
        self.logits = nn.Parameter(torch.zeros(config.components))

    def components(self) -> tuple[Tensor, DiagonalGaussian]:
        return self.logits.log_softmax(0), DiagonalGaussian(self.means, self.log_vars)

    def kl(self, q: DiagonalGaussian, **cond: Tensor) -> Tensor | None:
        return q.kl(DiagonalGaussian(self.means, self.log_vars)) if len(self.means) == 1 else None


class VampPrior(_Components):
    inputs: Tensor

    def __init__(self, config: Any, spec: Spec, posterior: Callable[..., DiagonalGaussian]) -> None:
        super().__init__(config, spec, posterior)
        self.posterior, self.span, self.conditions = posterior, spec.x.range, tuple(spec.cond)
        shape = (config.components, *spec.x.shape)
        low, high = spec.x.range or (0.0, 0.0)
        start = torch.empty(shape)
        if spec.x.range:
            nn.init.uniform_(start, low, high)
        else:
            nn.init.normal_(start)
        if config.pseudo_inputs == "learned":
            self.inputs = nn.Parameter(start)
        else:
            self.register_buffer("inputs", start)
        for key, field in spec.cond.items():
            kind = torch.long if field.vocab and field.range is None else torch.float
            self.register_buffer(f"given_{key}", torch.zeros(config.components, *field.shape, dtype=kind))

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], rng: Rng) -> None:
        count, held = len(self.inputs), [next(data)]
        while sum(len(batch["x"]) for batch in held) < count:
            held.append(next(data))
        self.inputs.copy_(torch.cat([batch["x"] for batch in held])[:count])
        for key in self.conditions:
            cast(Tensor, getattr(self, f"given_{key}")).copy_(torch.cat([batch[key] for batch in held])[:count])

    def components(self) -> tuple[Tensor, DiagonalGaussian]:
        u = self.inputs if self.span is None else self.inputs.clamp(*self.span)  # whose gradient is one at the ends
        q = self.posterior(u, **{key: getattr(self, f"given_{key}") for key in self.conditions})
        return q.mean.new_full((len(u),), -math.log(len(u))), q


class Flow(Prior):
    def __init__(self, config: Any, spec: Spec, posterior: Callable[..., DiagonalGaussian]) -> None:
        super().__init__(config, spec, posterior)
        hidden = (config.prior_width, config.prior_width)
        layers = (AffineAutoregressive(self.dim, hidden, reverse=i % 2 == 1) for i in range(config.prior_layers))
        self.flow = Chain(layers)

    def density(self, **cond: Tensor) -> Density:
        def log_prob(z: Tensor) -> Tensor:
            noise, log_det = self.flow(z.to(_like(self)))
            return (standard_normal(noise) + log_det).to(z.dtype)

        return log_prob

    def draw(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        return self.flow.inverse(rng.normal((n, self.dim)).to(_like(self)))[0]


class Autoregressive(Prior):
    """Every conditional begins as a mixture does."""

    def __init__(self, config: Any, spec: Spec, posterior: Callable[..., DiagonalGaussian]) -> None:
        super().__init__(config, spec, posterior)
        self.net = MaskedMlp(self.dim, (config.prior_width,) * config.prior_layers, 3 * config.components)
        means, log_vars = _apart(config.components, self.dim)
        start = torch.stack([torch.zeros_like(means), means, log_vars])  # (3, K, dim)
        with torch.no_grad():
            self.net.last.bias.copy_(start.permute(2, 0, 1).flatten())

    def conditionals(self, z: Tensor) -> tuple[Tensor, DiagonalGaussian]:
        """log weights and components of every number, `(N, dim, K)`, given those before it."""
        logits, means, log_vars = self.net(z.to(_like(self))).to(z.dtype).chunk(3, -1)
        return logits.log_softmax(-1), DiagonalGaussian(means, log_vars)

    def density(self, **cond: Tensor) -> Density:
        def log_prob(z: Tensor) -> Tensor:
            log_weights, parts = self.conditionals(z)
            return (log_weights + parts.log_prob_each(z[..., None])).logsumexp(-1).sum(1)

        return log_prob

    def draw(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        u = rng.at("component").uniform((n, self.dim), torch.float64)
        noise = rng.at("noise").normal((n, self.dim)).to(_like(self))
        z, rows = torch.zeros_like(noise), torch.arange(n, device=noise.device)
        for i in range(self.dim):
            log_weights, parts = self.conditionals(z)
            chosen = rng.multinomial(log_weights[:, i].exp(), u[:, i].to(noise.device))
            picked = DiagonalGaussian(parts.mean[rows, i, chosen], parts.log_var[rows, i, chosen])
            z = z.index_copy(1, torch.tensor([i], device=z.device), picked.draw(noise[:, i])[:, None])
        return z


PRIORS: dict[str, Any] = {
    "standard": Standard,
    "mixture": Mixture,
    "vampprior": VampPrior,
    "flow": Flow,
    "autoregressive": Autoregressive,
}


def _apart(count: int, dim: int) -> tuple[Tensor, Tensor]:
    """Means and log variances `(count, dim)` of Gaussians that are together as wide as N(0, I): N(0, I) itself if one."""
    spread = 0.5 if count > 1 else 0.0
    return nn.init.normal_(torch.empty(count, dim), std=math.sqrt(spread)), torch.full(
        (count, dim), math.log(1 - spread)
    )


def _like(prior: Prior) -> Tensor:
    """A tensor of the prior's dtype and device."""
    return next(prior.parameters())
