"""Neural Variational Inference and Learning in Belief Networks (Mnih & Gregor, 2014). arXiv:1402.0030

Offers: sample, bound, encode, reconstruct

    p(x, h) = p(x|h₁) p(h₁|h₂) … p(h_L),   q(h|x) = q(h₁|x) q(h₂|h₁) … q(h_L|h_{L−1}),   all of them independent bits
    l_i = log p(h_{i−1}|h_i) + … + log p(h_L) − log q(h_i|h_{i−1}) − … − log q(h_L|h_{L−1}),   h₀ = x,   ELBO = E_q[l₁]
    ∇φ_i = E[s_i ∇ log q(h_i|h_{i−1})],   s_i = (l_i − C_i(h_{i−1}) − c_i) / max(1, √v_i),   ∇θ = E[∇ log p(x, h)]

Bits have no reparameterisation: q is trained by its score. What makes that work: l_i holds only what h_i can change, C_i is a
network that guesses it from what is below (trained by s_i ∇C_i), and c_i and v_i are running mean and variance of l_i − C_i.
The loss that is shown is −l₁ in nats; its gradient is the one above.

The paper's: a sigmoid belief network, in which every layer is one affine map; a hidden layer of 100 tanh units in each C_i;
the mean of the data taken from what the inference network sees; running averages of decay 0.8.
`autoregressive` lets each bit of the topmost layer depend on those before it in p(h_L), by a logistic regression, as in deep
autoregressive networks (Gregor et al., arXiv:1310.8499) that the paper trains too; here in no other layer, and not in q.
Ours: Adam; one learning rate for all; c and v are of the steps before (of the first batch at the start), not of this one, so
that an item's gradient does not depend on the others and has no bias; `encoder` and `decoder`, the maps between x and h₁, may
be deeper.

Bound: `log_prob(x, rng, 1)` is the ELBO from one draw of h, with k > 1 draws the importance-weighted bound
(arXiv:1509.00519); probabilities of bits. A sample is the mean of p(x|h₁) at an h₁ from the belief network. Codes are h₁,
`(N, units[0])` in {0, 1}, each bit its likelier value.

Raises GencliError for data that have not two values, and without a layer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae._bound import Bounded, Weigh

FIRST = 4096  # items that the data's mean is taken of


class Signal(nn.Module):
    """Running mean and variance of each layer's learning signal."""

    mean: Tensor
    variance: Tensor

    def __init__(self, layers: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("mean", torch.zeros(layers))
        self.register_buffer("variance", torch.ones(layers))
        self._seen: Tensor | None = None

    def see(self, raw: Tensor) -> None:
        """Gather signals `(L, N)` of a micro-batch: how many, their sums and those of their squares about the mean so far."""
        exact = torch.float32 if raw.device.type == "mps" else torch.float64
        apart = raw.detach().to(exact) - self.mean.to(exact)[:, None]
        seen = torch.stack([torch.ones_like(apart).sum(1), apart.sum(1), apart.square().sum(1)])
        self._seen = seen if self._seen is None else self._seen + seen

    def begin(self, raw: Tensor) -> None:
        """Start from signals `(L, N)`, each process by itself: the main one's are sent to all."""
        variance, mean = torch.var_mean(raw, dim=1, correction=0)
        self.mean.copy_(mean)
        self.variance.copy_(variance)

    def update(self) -> None:
        """Move towards what was seen since the last call. Every process must call it."""
        seen, self._seen = self._seen, None
        assert seen is not None, "a step has a loss before it ends"
        count, first, second = core.all_reduce(seen)
        weight = 1 - self.decay
        shift = first / count
        self.variance.lerp_((second / count - shift.square()).to(self.variance), weight)
        self.mean += weight * shift.to(self.mean)

    def scaled(self, raw: Tensor) -> Tensor:
        """(raw − c) / max(1, √v) `(L, N)`."""
        return (raw - self.mean[:, None]) / self.variance.sqrt().clamp(min=1)[:, None]


class NVIL(Bounded):
    """A sigmoid belief network and its inference network."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "binarise"},)
    training_only = ("baselines.", "signal.")
    compilable = ("encoder", "decoder")
    shardable = ("encoder", "decoder")
    mass: ClassVar[bool] = True

    centre: Tensor

    @dataclass(frozen=True)
    class Config:
        units: tuple[int, ...] = opt((200,), "bits of each latent layer, from the data upwards")
        baseline: int = opt(
            100, "tanh units of the baseline of each layer; 0 = no baseline but the running mean", low=0
        )
        autoregressive: bool = opt(False, "bits of the topmost layer depend on those before them in the prior")
        decay: float = opt(0.8, "decay of the running mean and variance of the learning signals", low=0, high=0.9999)
        encoder: Part = part("networks", "mlp", "network from x to the first layer's posterior", role="map", layers=0)
        decoder: Part = part("networks", "mlp", "network from the first layer to x", role="map", layers=0)

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, dataclasses.replace(spec, cond={}))
        x, units = spec.x, config.units
        if x.vocab != 2 or x.range is None:
            values = f"{x.vocab} values" if x.vocab else "no number of values"
            raise GencliError(f"nvil needs data of two values, got {x.kind} of {values}", "use the codec binarise")
        if not units or min(units) < 1:
            given = ",".join(map(str, units)) or "nothing"
            raise GencliError(f"units is {given}: each latent layer needs a bit or more", "give --units 200,200")
        self.low, self.high = x.range
        self.latent = Field("codes", (units[0],), vocab=2)
        bits = Field("latent", (units[0],))
        self.encoder = config.encoder.build(x, bits, {})
        self.decoder = config.decoder.build(bits, x, {})
        self.up = nn.ModuleList(nn.Linear(below, above) for below, above in pairwise(units))
        self.down = nn.ModuleList(nn.Linear(above, below) for below, above in pairwise(units))
        self.top = nn.Parameter(torch.zeros(units[-1]))
        self.top_before = nn.Parameter(torch.zeros(units[-1], units[-1])) if config.autoregressive else None
        self.baselines = nn.ModuleList(
            nn.Sequential(nn.Linear(size, config.baseline), nn.Tanh(), nn.Linear(config.baseline, 1))
            for size in (x.size, *units[:-1])
            if config.baseline
        )
        self.signal = Signal(len(units), config.decay)
        self.register_buffer("centre", torch.zeros(x.shape))

    # -------------------------------------------------------------------------------------------------------- the networks

    def bits(self, x: Tensor) -> Tensor:
        """x as zeros and ones, in the precision of the weights."""
        return ((x - self.low) / (self.high - self.low)).to(self.top)

    def infer(self, bits: Tensor, uniform: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """h₁ … h_L from uniform numbers `(N, units)`, and log q(h_i|h_{i−1}) `(L, N)`."""
        made: list[Tensor] = []
        nats: list[Tensor] = []
        for i, u in enumerate(uniform):
            logits = self.encoder(bits - self.centre) if i == 0 else self.up[i - 1](made[-1])
            made.append((u.to(logits) < logits.sigmoid()).to(logits))
            nats.append(log_bernoulli(logits, made[-1]))
        return made, torch.stack(nats)

    def log_joint(self, bits: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        """log p(x|h₁), log p(h₁|h₂), …, log p(h_L) `(L + 1, N)`."""
        made = [log_bernoulli(self.decoder(hidden[0]), bits)]
        for layer, below, above in zip(self.down, hidden, hidden[1:], strict=False):
            made.append(log_bernoulli(layer(above), below))
        made.append(log_bernoulli(self.top_logits(hidden[-1]), hidden[-1]))
        return torch.stack(made)

    def top_logits(self, h: Tensor) -> Tensor:
        """Of every bit of h_L, given those before it, `(N, units[-1])`."""
        return self.top.expand_as(h) if self.top_before is None else self.top + h @ self.top_before.tril(-1).T

    def _uniform(self, rng: Rng, n: int) -> list[Tensor]:
        return [rng.at("layer", i).uniform((n, size)) for i, size in enumerate(self.config.units)]

    def guesses(self, bits: Tensor, hidden: Sequence[Tensor]) -> Tensor:
        """C_i of what is below layer i `(L, N)`."""
        if not self.config.baseline:
            return bits.new_zeros(len(hidden), len(bits))
        below = [(bits - self.centre).flatten(1), *hidden[:-1]]
        return torch.stack([net(h).squeeze(1) for net, h in zip(self.baselines, below, strict=True)])

    # ------------------------------------------------------------------------------------------------------------- the loss

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """−l₁ of each item in nats, with the gradient of the paper; the mean over items."""
        x = batch["x"]
        with core.full_precision(x.device):
            bits = self.bits(x)
            hidden, log_q = self.infer(bits, self._uniform(turn.rng.at("posterior"), len(x)))
            log_p = self.log_joint(bits, hidden)
            guesses = self.guesses(bits, hidden)
            local = signals(log_p, log_q).detach()
            raw = local - guesses.detach()
            scaled = self.signal.scaled(raw)
            lever = log_p.sum(0) + (scaled * (log_q + guesses)).sum(0)
            each = -local[0] - (lever - lever.detach())  # the value of −l₁, the gradient of the lever
        if self.training:
            self.signal.see(raw)
        spread = self.signal.variance.mean().sqrt()
        return {"loss": each.mean(), "each": each, "recon": -log_p[0].mean().detach(), "signal_deviation": spread}

    def after_step(self, turn: Turn) -> None:
        self.signal.update()

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """The data's mean; mean and variance of the first batch's signals."""
        batches = [next(data)["x"].to(self.device)]
        while sum(map(len, batches)) < min(count, FIRST):
            batches.append(next(data)["x"].to(self.device))
        self.centre.copy_(self.bits(torch.cat(batches)).mean(0))
        bits, n = self.bits(batches[0]), len(batches[0])
        drawn = [rng.at("layer", i).uniform((1, n, size))[0] for i, size in enumerate(self.config.units)]
        hidden, log_q = self.infer(bits, drawn)
        self.signal.begin(signals(self.log_joint(bits, hidden), log_q) - self.guesses(bits, hidden))

    # ----------------------------------------------------------------------------------------------------------- likelihood

    def weighing(self, x: Tensor, rng: Rng, exact: torch.dtype, cond: Mapping[str, Tensor]) -> Weigh:
        bits = self.bits(x)

        def weigh(i: int, closed: bool) -> Tensor:
            hidden, log_q = self.infer(bits, self._uniform(rng.at("posterior", i), len(x)))
            return signals(self.log_joint(bits, hidden), log_q)[0].to(exact)

        return weigh

    # ------------------------------------------------------------------------------------------------------------- latents

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """h₁ `(n, units[0])` by ancestral sampling from the top, zeros and ones."""
        uniform = self._uniform(rng, n)
        u = uniform[-1].to(self.top)
        h = torch.zeros_like(u)
        for bits in [slice(None)] if self.top_before is None else range(h.shape[1]):
            h[:, bits] = (u < self.top_logits(h).sigmoid()).to(h)[:, bits]
        for layer, u in zip(reversed(self.down), reversed(uniform[:-1]), strict=True):
            h = (u.to(h) < layer(h).sigmoid()).to(h)
        return h

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """The mean of p(x|h₁)."""
        return self.low + (self.high - self.low) * self.decoder(z.to(self.top)).sigmoid()

    def encode(self, x: Tensor) -> Tensor:
        """The likelier value of each bit of h₁, `(N, units[0])`."""
        return (self.encoder(self.bits(x) - self.centre) > 0).long()

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through its code and back."""
        return self.decode(self.encode(x))


def signals(log_p: Tensor, log_q: Tensor) -> Tensor:
    """l_i `(L, N)` from the terms of log p `(L + 1, N)` and of log q `(L, N)`; the first is the ELBO's estimate."""
    above = log_p.flip(0).cumsum(0).flip(0)
    return above[:-1] - log_q.flip(0).cumsum(0).flip(0)


def log_bernoulli(logits: Tensor, bits: Tensor) -> Tensor:
    """log p of bits `(N,)`, the sum over an item's."""
    return -F.binary_cross_entropy_with_logits(logits, bits, reduction="none").flatten(1).sum(1)
