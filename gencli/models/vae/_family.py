"""What variational autoencoders share: a Gaussian posterior, its KL divergence from the prior, and the bounds.

    ELBO = E_q(z|x)[log p(x|z)] − KL(q(z|x) ‖ p(z)),   q(z|x) = N(μ(x), diag σ²(x)),   z = μ + σ ε,   p(z) = N(0, I)
    IWAE-k = log (1/k) Σ p(x|z_i) p(z_i) / q(z_i|x)

Sums over an item's numbers and over the latent, means over items, so that the two terms keep their relative weight whatever
the size of images and batches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Model, Rng, Spec, Turn, full_precision
from gencli.models.vae._decoders import DECODERS, Decoder, DecoderName


class DiagonalGaussian(NamedTuple):
    """Independent normal numbers, `(N, dim)` each."""

    mean: Tensor
    log_var: Tensor

    def draw(self, noise: Tensor) -> Tensor:
        """z = μ + σ ε, through which gradients flow to μ and σ."""
        return self.mean + (0.5 * self.log_var).exp() * noise

    def kl(self) -> Tensor:
        """KL(q ‖ N(0, I)) `(N,)` in nats."""
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1 - self.log_var).flatten(1).sum(1)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) `(N,)` in nats."""
        apart = (z - self.mean).square() * (-self.log_var).exp()
        return -0.5 * (apart + self.log_var + math.log(2 * math.pi)).flatten(1).sum(1)


def standard_normal(z: Tensor) -> Tensor:
    """log N(z; 0, I) `(N,)` in nats."""
    return DiagonalGaussian(torch.zeros_like(z), torch.zeros_like(z)).log_prob(z)


class GaussianVAE(Model):
    """An encoder to a Gaussian posterior over a flat latent, and a decoder to a distribution over x; labels are not used."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    compilable = ("encoder", "decoder")
    shardable = ("encoder", "decoder")
    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"

    @dataclass(frozen=True)
    class Config:
        dim: int = opt(20, "numbers in the latent", low=1)
        likelihood: DecoderName = opt("logistic", "distribution of the decoder; bernoulli needs the codec binarise")
        scale: float = opt(0.0, "scale of a gaussian or logistic decoder, in model space; 0 = learned", low=0)
        encoder: Part = part("networks", "mlp", "network from x to the posterior", role="map")
        decoder: Part = part("networks", "mlp", "network from the latent to p(x|z)", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, dataclasses.replace(spec, cond={}))
        self.latent = Field("latent", (config.dim,))
        self.observed: Decoder = DECODERS[config.likelihood](spec.x, config.scale)
        self.encoder = config.encoder.build(spec.x, Field("posterior", (2 * config.dim,)), {})
        self.decoder = config.decoder.build(self.latent, self.observed.out, {})

    @property
    def mass(self) -> bool:
        """Whether `log_prob` is about probabilities of values rather than a density."""
        return self.observed.mass

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def posterior(self, x: Tensor) -> DiagonalGaussian:
        """q(z|x), at least in float32."""
        made = self.encoder(x.to(self._dtype))
        return DiagonalGaussian(*made.to(torch.promote_types(self._dtype, torch.float32)).chunk(2, 1))

    def objective(self, recon: Tensor, kl: Tensor, turn: Turn) -> Tensor:
        """What is minimised, `(N,)`, from −log p(x|z) and the KL divergence."""
        return recon + kl

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        q = self.posterior(x)
        with full_precision(x.device):
            z = q.draw(turn.rng.at("posterior").normal(q.mean.shape).to(q.mean))
        made = self.decoder(z.to(self._dtype))
        with full_precision(x.device):
            recon, kl = -self.observed.log_prob(made.to(q.mean), x.to(q.mean)), q.kl()
            each = self.objective(recon, kl, turn)
        shown = {"recon": recon.mean().detach(), "kl": kl.mean().detach()}
        if self.mass:
            shown["bits_per_dim"] = (shown["recon"] + shown["kl"]) / (math.log(2) * self.spec.x.size)
        return {"loss": each.mean(), "each": each, **shown}

    # ----------------------------------------------------------------------------------------------------------- likelihood

    def estimate(self, samples: int) -> str:
        """What `log_prob` of that many draws is."""
        return "ELBO" if samples == 1 else f"IWAE-{samples}"

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """A lower bound of log p(x) `(N,)` in nats, in float64 where the device has it.

        Args:
            x: data in model space.
            rng: noise, one row an item.
            samples: 1 gives the ELBO with the KL divergence in closed form; more give the importance-weighted bound,
                one draw after the other, so that memory does not grow with their number.
            cond: not used.
        """
        with full_precision(x.device):
            exact = torch.float32 if x.device.type == "mps" else torch.float64
            q = DiagonalGaussian(*(part.to(exact) for part in self.posterior(x)))
            if samples == 1:
                return self._log_likelihood(q, q.draw(self._noise(rng, 0, q)), x) - q.kl()
            total = torch.full((len(x),), -math.inf, dtype=exact, device=x.device)
            for i in range(samples):
                z = q.draw(self._noise(rng, i, q))
                weight = self._log_likelihood(q, z, x) + standard_normal(z) - q.log_prob(z)
                total = torch.logaddexp(total, weight)
            return total - math.log(samples)

    def _noise(self, rng: Rng, i: int, q: DiagonalGaussian) -> Tensor:
        return rng.at("posterior", i).normal(q.mean.shape).to(q.mean)

    def _log_likelihood(self, q: DiagonalGaussian, z: Tensor, x: Tensor) -> Tensor:
        return self.observed.log_prob(self.decoder(z.to(self._dtype)).to(q.mean), x.to(q.mean))

    # ------------------------------------------------------------------------------------------------------------- latents

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """z `(n, dim)`."""
        return rng.normal((n, self.config.dim)).to(self.device, self._dtype)

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """The mean of p(x|z)."""
        return self.observed.mean(self.decoder(z))

    def encode(self, x: Tensor) -> Tensor:
        """The mean of q(z|x), `(N, dim)`."""
        return self.posterior(x).mean

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through the posterior's mean and back."""
        return self.decode(self.encode(x))
