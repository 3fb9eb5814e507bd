"""Categorical Reparameterization with Gumbel-Softmax: the discrete VAE (Jang, Gu & Poole, 2016). arXiv:1611.01144

Offers: encode, reconstruct

    L = ( −log p(φ(x) | y) + β Σ_places KL(q ‖ uniform) ) / D,   y = softmax((log q + g) / τ),   KL = log K − H(q)

with D the numbers of an item, g Gumbel noise, q(k | x) of each place by the encoder, and DALL-E's logit-Laplace distribution

    p(v) = exp(−|logit v − μ| / b) / (2 b v (1 − v)),   v = φ(x) = (1 − 2ε) x + ε in [ε, 1 − ε],   ε = 0.1

for x in [0, 1], μ and log b by the decoder. A reconstruction is φ⁻¹(sigmoid μ), inside the data's range. τ falls and β rises
along half a cosine, as in DALL-E (arXiv:2102.12092): τ 1 → 1/16 in 150,000 steps, β 0 → 6.6 in 5,000, of its D = 3·256², 8,192
codes. `hard` draws are one-hot, with the relaxed draw's gradient (straight-through).

Codes are the most probable ones, `(N, h, w)` in 0 … K−1. L is no bound on log p(x): draws are relaxed, β is not one.

Ours: b is at least e⁻⁷. Raises GencliError as of `vqvae`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Spec, Turn
from gencli.models.vae._quantised import CountedAutoencoder
from gencli.nn.gumbel import annealed, gumbel_softmax, kl_to_uniform

EPSILON, LEAST_LOG_B = 0.1, -7.0


class DVAE(CountedAutoencoder):
    """Encoder to a categorical distribution at each place, relaxed draws, decoder."""

    @dataclass(frozen=True)
    class Config:
        codes: int = opt(8192, "number of codes K", low=2)
        tau: float = opt(1.0, "temperature of draws at the start", low=0.01)
        tau_end: float = opt(1 / 16, "temperature at the end", low=0.01)
        tau_steps: float = opt(150_000, "steps to get there; below 1 a share of training", low=0)
        kl: float = opt(6.6, "weight β of the divergence from even use, at the end", low=0)
        kl_steps: float = opt(5000, "steps in which it rises from 0; below 1 a share of training", low=0)
        hard: bool = opt(False, "one-hot draws, straight-through")
        encoder: Part = part("networks", "dalle-encoder", "network from x to logits of codes", role="map")
        decoder: Part = part("networks", "dalle-decoder", "network from draws to p(x)", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        x = spec.x
        both = dataclasses.replace(x, shape=(2 * x.shape[0], *x.shape[1:]), range=None)
        super().__init__(config, spec, config.codes, config.codes, out=both)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        tau, beta = self.temperature(turn), self.weight(turn)
        logits = self.encoder(x)
        with core.full_precision(x.device):
            logits = logits.to(x.dtype)
            u = turn.rng.at("gumbel").uniform(logits.shape).to(logits)
            draws = gumbel_softmax(logits, u, tau, self.config.hard)
        made = self.decoder(draws)
        with core.full_precision(x.device):
            mu, log_b = made.to(x.dtype).chunk(2, 1)
            nll = -logit_laplace(self.squeezed(x), mu, log_b).flatten(1).mean(1)
            kl = kl_to_uniform(logits).flatten(1).sum(1)
            each = nll + beta * kl / self.spec.x.size
        logged = {"nll": nll, "kl": kl / self.latent.size, "recon": (self.shown(mu) - x).square().flatten(1).mean(1)}
        return {
            "loss": each.mean(),
            "each": each,
            **{key: value.mean().detach() for key, value in logged.items()},
            "tau": x.new_tensor(tau),
            "beta": x.new_tensor(beta),
            **self.counted(logits.detach().argmax(1)),
        }

    def temperature(self, turn: Turn) -> float:
        """τ at this turn."""
        return annealed(self.config.tau, self.config.tau_end, within(self.config.tau_steps, turn), turn.step)

    def weight(self, turn: Turn) -> float:
        """β at this turn."""
        return annealed(0.0, self.config.kl, within(self.config.kl_steps, turn), turn.step)

    def squeezed(self, x: Tensor) -> Tensor:
        """φ(x): the data's range to [ε, 1 − ε]."""
        low, high = self.spec.x.range or (0.0, 1.0)
        return (1 - 2 * EPSILON) * (x - low) / (high - low) + EPSILON

    def shown(self, mu: Tensor) -> Tensor:
        """x of the location μ."""
        low, high = self.spec.x.range or (0.0, 1.0)
        return (low + (high - low) * (mu.sigmoid() - EPSILON) / (1 - 2 * EPSILON)).clamp(low, high)

    def encode(self, x: Tensor) -> Tensor:
        """Codes `(N, h, w)`."""
        return self.encoder(x).argmax(1)

    def decode(self, z: Tensor) -> Tensor:
        """x from codes `(N, h, w)`."""
        like = next(self.decoder.parameters())
        draws = F.one_hot(z, self.config.codes).movedim(-1, 1).to(like)
        return self.shown(self.decoder(draws).chunk(2, 1)[0])


def within(steps: float, turn: Turn) -> float:
    """A number of steps, given as such or as a share of training."""
    return steps * turn.steps if steps < 1 else steps


def logit_laplace(v: Tensor, mu: Tensor, log_b: Tensor) -> Tensor:
    """The log-density of v in (0, 1), of each number."""
    log_b = log_b.clamp(min=LEAST_LOG_B)
    return -(v.logit() - mu).abs() * (-log_b).exp() - log_b - math.log(2) - v.log() - (1 - v).log()
