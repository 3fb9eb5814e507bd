"""Maximum Likelihood from Incomplete Data via the EM Algorithm: Gaussian mixtures (Dempster, Laird & Rubin, 1977).

Offers: sample, exact density

    p(x) = Σ_k π_k N(x; μ_k, Σ_k),   ELBO(q, θ) = Σ_k q(k|x) log (π_k N(x; μ_k, Σ_k) / q(k|x)) ≤ log p(x)
    E: q(k|x) = p(k|x; θ)            M: π_k = mean q,   μ_k = Σ q x / Σ q,   Σ_k = Σ q (x − μ_k)(x − μ_k)ᵀ / Σ q

An iteration is one pass over the data, however many steps that takes: steps gather Σ q, Σ q (x − μ) and Σ q (x − μ)(x − μ)ᵀ,
and the M-step follows the item that ends the pass. In a batch that holds the end of one pass and the start of the next, the
later items meet the new parameters. So every iteration is exact EM and cannot lower log p of the data; with a batch of the
whole data a step is an iteration. Nothing of the mixture is learned by gradient, and training is the same on any number of
processes. `elbo` and `log_p` are logged at every step, in nats an item.

`inference = "exact"` takes the posterior by Bayes' rule: the ELBO then is log p. `amortised` (variational EM) has a network
`net` for q(k|x), trained by gradient of the ELBO; the M-step uses the network's q, and log p − ELBO is what it still lacks.
An iteration then is `passes` passes over the data, the last of which is gathered: an M-step for the q of an untrained network
would make all components alike.

The M-step keeps every variance of a component, in any direction, at or above `floor`: eigenvalues of Σ_k below it are raised
to it, which is the best Σ_k under that bound, so log p still never falls, and no component can collapse onto one item.

Ours: the first means are items far apart from each other (k-means++, Arthur & Vassilvitskii, 2007) or any items (`points`),
the best of `starts` draws by distance to the data; π is even and all Σ are that of the items about their nearest mean. A
component that no item belongs to stays where it is.

x has any shape, real numbers; latents are normal, `(N, K + D)`: the first K choose the component, by Gumbel's trick, the
others are its noise. A mixture over the latents of an autoencoder is a prior for it: `gencli train em --codec RUN`. Labels
are not used.

Raises GencliError for whole numbers, and for fewer items than components.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Model, Phase, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.palette import spread_out
from gencli.nn.quantise import assign

MOST = 1 << 15  # items that the first means are drawn from
NUMBERS = 1 << 22  # of distances that are held at a time


class Sums(nn.Module):
    """What an iteration has gathered so far, about the means it started from."""

    mass: Tensor
    first: Tensor
    second: Tensor
    count: Tensor

    def __init__(self, components: int, dim: int, full: bool) -> None:
        super().__init__()
        self.register_buffer("mass", torch.zeros(components))  # Σ q
        self.register_buffer("first", torch.zeros(components, dim))  # Σ q (x − μ)
        self.register_buffer("second", torch.zeros(components, dim, *[dim] * full))  # Σ q (x − μ)(x − μ)ᵀ
        self.register_buffer("count", torch.zeros((), dtype=torch.long))  # items in a pass

    def add(self, mass: Tensor, first: Tensor, second: Tensor) -> None:
        """Add what all processes saw. Every process must call it."""
        for held, part_ in ((self.mass, mass), (self.first, first), (self.second, second)):
            held += core.all_reduce(part_.to(held))

    def clear(self) -> None:
        """Begin a new iteration."""
        for held in (self.mass, self.first, self.second):
            held.zero_()


class GaussianMixture(Model):
    """K Gaussians with full or diagonal covariances."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "dequantise"},)
    training_only = ("sums.", "net.")
    compilable = ()
    shardable = ()
    likelihood: ClassVar[Literal["exact", "bound"]] = "exact"
    mass: ClassVar[bool] = False

    weights: Tensor
    means: Tensor
    scales: Tensor

    @dataclass(frozen=True)
    class Config:
        components: int = opt(8, "number of Gaussians K", low=1)
        covariance: Literal["full", "diag"] = opt("full", "shape of a component")
        inference: Literal["exact", "amortised"] = opt("exact", "q(k|x): Bayes' rule, or a network that learns it")
        passes: int = opt(1, "passes over the data in an iteration; more bring an amortised q nearer", low=1)
        floor: float = opt(1e-4, "least variance of a component in any direction, in model space", low=1e-12)
        start: Literal["k-means++", "points"] = opt("k-means++", "first means: items far from each other, or any items")
        starts: int = opt(8, "draws of the first means, the nearest to the data being kept", low=1)
        net: Part = part("networks", "mlp", "network of the amortised q(k|x)", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, dataclasses.replace(spec, cond={}))
        x, k = spec.x, config.components
        if x.vocab is not None and x.range is None:
            raise GencliError(
                f"em is a density and needs continuous data, got whole numbers ({x.kind} of {x.vocab} values)",
                "use the codec dequantise with images, or an autoencoder with continuous latents",
            )
        self.full = config.covariance == "full"
        scale = torch.eye(x.size) if self.full else torch.ones(x.size)
        self.register_buffer("weights", torch.full((k,), 1 / k))
        self.register_buffer("means", torch.zeros(k, x.size))
        self.register_buffer("scales", scale.repeat(k, *[1] * scale.ndim))  # Cholesky factors, or standard deviations
        self.sums = Sums(k, x.size, self.full)
        self.net = config.net.build(x, Field("logits", (k,)), {}) if config.inference == "amortised" else None
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []  # places, items and q since the last step

    @property
    def device(self) -> torch.device:
        return self.means.device

    @property
    def covariances(self) -> Tensor:
        """`(K, D, D)`, or `(K, D)` variances of a diagonal mixture."""
        return self.scales @ self.scales.mT if self.full else self.scales.square()

    def phases(self) -> list[Phase]:
        return [Phase("expectation", () if self.net is None else (self.net,))]

    # ---------------------------------------------------------------------------------------------------------- the density

    @property
    def _exact(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64

    def joint(self, rows: Tensor) -> Tensor:
        """log π_k N(x; μ_k, Σ_k) `(N, K)` of items `(N, D)`, in float64 where the device has it."""
        each = max(1, NUMBERS // self.means.numel())
        return torch.cat([self._joint(part_) for part_ in rows.to(self._exact).split(each)])

    def _joint(self, rows: Tensor) -> Tensor:
        means, scales = self.means.to(rows), self.scales.to(rows)
        apart = rows - means[:, None]  # (K, N, D)
        if self.full:
            white = torch.linalg.solve_triangular(scales, apart.mT, upper=False).mT
            widths = scales.diagonal(dim1=1, dim2=2)
        else:
            white, widths = apart / scales[:, None], scales
        log_weights = self.weights.to(rows).clamp(min=torch.finfo(rows.dtype).tiny).log()
        constant = log_weights - widths.log().sum(1) - 0.5 * math.log(2 * math.pi) * rows.shape[1]
        return (constant[:, None] - 0.5 * white.square().sum(2)).mT

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """log p(x) `(N,)` in nats, in model space; without randomness."""
        with core.full_precision(x.device):
            return self.joint(x.flatten(1)).logsumexp(1)

    # --------------------------------------------------------------------------------------------------------- expectation

    def log_posterior(self, x: Tensor, joint: Tensor) -> Tensor:
        """log q(k|x) `(N, K)`."""
        if self.net is None:
            return joint.log_softmax(1)
        return self.net(x.to(next(self.net.parameters()))).to(joint).log_softmax(1)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """−ELBO of each item in nats; the mean over items."""
        x = batch["x"]
        with core.full_precision(x.device):
            rows = x.flatten(1)
            joint = self.joint(rows)
            log_q = self.log_posterior(x, joint)
            elbo = (log_q.exp() * (joint - log_q)).sum(1)
        if self.training:
            self._seen.append((turn.rng.places, rows, log_q.detach().exp()))
        shown = {"elbo": elbo.mean().detach(), "log_p": joint.logsumexp(1).mean()}
        return {"loss": -elbo.mean(), "each": -elbo, **shown}

    # -------------------------------------------------------------------------------------------------------- maximisation

    @torch.no_grad()
    def after_step(self, turn: Turn) -> None:
        """Gather what the batch holds of each pass over the data; where a pass ends, the M-step."""
        seen, self._seen = self._seen, []
        size, count = len(turn.rng), int(self.sums.count)
        begin = turn.step * size
        for epoch in range(begin // count, (begin + size - 1) // count + 1):
            if (epoch + 1) % self.config.passes:
                continue
            self._gather(seen, begin, epoch, fresh=epoch > begin // count)
            if (epoch + 1) * count <= begin + size:
                self._maximise()

    def _gather(self, seen: list[tuple[Tensor, Tensor, Tensor]], begin: int, epoch: int, fresh: bool) -> None:
        """Add the items of one pass; a `fresh` one has begun after the M-step, so that q is taken anew."""
        made = [
            torch.zeros_like(held, dtype=self._exact) for held in (self.sums.mass, self.sums.first, self.sums.second)
        ]
        for places, rows, q in seen:
            mine = (begin + places) // int(self.sums.count) == epoch
            x, share = rows[mine], q[mine]
            if fresh:
                share = self.log_posterior(x.view(-1, *self.spec.x.shape), self.joint(x)).exp()
            for k in range(self.config.components):
                apart = x.to(share) - self.means[k].to(share)
                held = share[:, k, None] * apart
                made[0][k] += share[:, k].sum()
                made[1][k] += held.sum(0)
                made[2][k] += held.mT @ apart if self.full else (held * apart).sum(0)
        self.sums.add(*made)

    def _maximise(self) -> None:
        """New parameters from the sums, computed on the CPU in float64."""
        mass, first, second = (held.cpu().double() for held in (self.sums.mass, self.sums.first, self.sums.second))
        alive = mass > 1e-10 * mass.sum()
        per = mass.clamp(min=1e-300)[:, None]
        shift = first / per
        square = shift[:, :, None] * shift[:, None] if self.full else shift.square()
        spread = second / (per[:, :, None] if self.full else per) - square
        self.weights.copy_(mass / mass.sum())
        self.means[alive] = (self.means.cpu().double() + shift)[alive].to(self.means)
        self.scales[alive] = factors(spread[alive], self.config.floor).to(self.scales)
        self.sums.clear()

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """The first parameters, from at most 32,768 items."""
        k, most = self.config.components, min(MOST, count)
        if count < k:
            raise GencliError(
                f"em has {k} components and the data {count} items", f"give --components {count} or fewer"
            )
        batches: list[Tensor] = []
        while sum(map(len, batches)) < most:
            batches.append(next(data)["x"].to(self.device).flatten(1))
        rows = torch.cat(batches)[:most].to(self._exact)
        tries = (self._first_means(rows, rng.at("start", i)) for i in range(self.config.starts))
        means = min(tries, key=lambda means: float(_apart(rows, means).square().sum()))
        near = _apart(rows, means).cpu().double()
        spread = (near.mT @ near if self.full else near.square().sum(0)) / len(near)
        self.means.copy_(means)
        self.scales.copy_(factors(spread[None], self.config.floor))
        self.sums.count.fill_(count)

    def _first_means(self, rows: Tensor, rng: Rng) -> Tensor:
        if self.config.start == "k-means++":
            return spread_out(rows, self.config.components, rng)
        order = rng.uniform((1, len(rows)), torch.float64)[0].argsort().to(rows.device)
        return rows[order[: self.config.components]]

    # ------------------------------------------------------------------------------------------------------------- samples

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """Normal numbers `(n, K + D)`, which choose a component and a place in it."""
        return rng.normal((n, self.config.components + self.spec.x.size)).to(self.means)

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """The item that the numbers stand for."""
        return self.stages(z)[-1]

    def stages(self, z: Tensor, **cond: Tensor) -> list[Tensor]:
        """The mean of the chosen component, then the item."""
        choice, noise = z.to(self.means).split([self.config.components, self.spec.x.size], 1)
        gumbel = -(-torch.special.log_ndtr(choice.to(self._exact))).log()
        chosen = (self.weights.to(gumbel).log() + gumbel).argmax(1)
        mean, scale = self.means[chosen], self.scales[chosen]
        moved = (scale @ noise[:, :, None]).squeeze(2) if self.full else scale * noise
        return [part_.view(-1, *self.spec.x.shape) for part_ in (mean, mean + moved)]


def _apart(rows: Tensor, means: Tensor) -> Tensor:
    """Items minus the mean that is nearest to each."""
    return rows - means[assign(rows, means)]


def factors(spread: Tensor, floor: float) -> Tensor:
    """Cholesky factors of covariances `(K, D, D)`, or deviations of variances `(K, D)`, none below `floor`."""
    if spread.ndim == 2:
        return spread.clamp(min=floor).sqrt()
    values, vectors = torch.linalg.eigh((spread + spread.mT) / 2)
    return torch.linalg.cholesky((vectors * values.clamp(min=floor)[:, None]) @ vectors.mT)
