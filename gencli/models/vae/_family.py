"""What variational autoencoders share: a Gaussian posterior, a prior, their divergence, and the bounds.

    ELBO = E_q(z|x)[log p(x|z)] − KL(q(z|x) ‖ p(z)),   q(z|x) = N(μ(x), diag σ²(x)),   z = μ + σ ε
    IWAE-k = log (1/k) Σ p(x|z_i) p(z_i) / q(z_i|x)

Sums over an item's numbers and over the latent, means over items, so that the two terms keep their relative weight whatever
the size of images and batches. The prior is N(0, I) or one of `_priors.py`; without a closed form KL is log q − log p at the
draw that the decoder sees. Training minimises −ELBO, or with `objective = "iwae"` −IWAE-k of `draws` draws, whose gradient
goes through all of them (Burda et al., arXiv:1509.00519, equation 14). With `classes` encoder and decoder are told the label:
q(z|x, y) and p(x|z, y). Latents then say nothing of the class, so that such a model is no autoencoder to serve as a codec.

A subclass changes

    objective     what is minimised, from the terms of the ELBO: another weight, more terms
    push          the posterior: z and log |det dz/dz₀| from a draw z₀ of N(μ, σ²) and `context_size` more numbers of the
                  encoder; with `gaussian = False`, log q = log N(z₀) − log |det| is used by loss, ELBO and IWAE alike
    prior_over    the prior: any `Prior`, which is given the conditions too
    conditions    what encoder, decoder and prior are told; `encoded` and `decoded` call the networks
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models._conditions import given, label_of, told
from gencli.models.vae._bound import Bounded, Weigh, warmup
from gencli.models.vae._decoders import DECODERS, DecoderName
from gencli.models.vae._priors import PRIORS, Density, Prior, PriorName
from gencli.nn.gaussian import DiagonalGaussian


class Terms(NamedTuple):
    """What the ELBO of a batch is made of: −log p(x|z) and the KL divergence `(N,)`, q(z|x) before `push`, and the draw z."""

    recon: Tensor
    kl: Tensor
    q: DiagonalGaussian
    z: Tensor


@dataclass(frozen=True)
class Settings:
    """Those of every VAE; `GaussianVAE.Config` adds what chooses the prior."""

    dim: int = opt(20, "numbers in the latent", low=1)
    likelihood: DecoderName = opt("logistic", "distribution of the decoder; bernoulli needs the codec binarise")
    scale: float = opt(0.0, "scale of a gaussian or logistic decoder, in model space; 0 = learned", low=0)
    mixtures: int = opt(5, "components of a logistic-mixture decoder", low=1)
    objective: Literal["elbo", "iwae"] = opt("elbo", "bound that training raises")
    draws: int = opt(5, "draws of the objective iwae", low=1)
    kl_warmup: int = warmup()
    encoder: Part = part("networks", "mlp", "network from x to the posterior", role="map")
    decoder: Part = part("networks", "mlp", "network from the latent to p(x|z)", role="map")


class GaussianVAE(Bounded):
    """An encoder to a Gaussian posterior over a flat latent, and a decoder to a distribution over x."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    compilable = ("encoder", "decoder")
    shardable = ("encoder", "decoder")
    gaussian: ClassVar[bool] = True  # q(z|x) is N(μ, σ²) itself: `push` changes nothing
    latent: Field

    @dataclass(frozen=True)
    class Config(Settings):
        classes: bool = opt(False, "encoder and decoder are told the class label")
        prior: PriorName = opt("standard", "distribution of latents: N(0, I), or one that is learned")
        components: int = opt(
            32, "of a mixture or vampprior, and of each conditional of an autoregressive prior", low=1
        )
        pseudo_inputs: Literal["learned", "data"] = opt("learned", "of a vampprior: learned, or items of the data")
        prior_width: int = opt(128, "hidden units of a flow or autoregressive prior", low=1)
        prior_layers: int = opt(3, "layers of a flow, hidden layers of an autoregressive prior", low=1)

    def __init__(self, config: Any, spec: Spec) -> None:
        cond = self.conditions(config, spec)
        super().__init__(config, dataclasses.replace(spec, cond=cond))
        if config.objective == "iwae" and config.kl_warmup:
            raise GencliError(
                f"kl-warmup {config.kl_warmup} weighs a KL divergence, and the objective iwae has none",
                "leave one of the two out",
            )
        latent = Field("latent", (config.dim,))
        if not cond:
            self.latent = latent
        self.observed = DECODERS[config.likelihood](spec.x, config.scale, config.mixtures)
        self.build_networks(latent, Field("posterior", (2 * config.dim + self.context_size,)))
        self.over_latents: Prior = self.prior_over()

    @classmethod
    def conditions(cls, config: Any, spec: Spec) -> Mapping[str, Field]:
        """What of the data's conditions the model is told."""
        if not config.classes:
            return {}
        return label_of(spec, cls.public_name())

    def build_networks(self, latent: Field, posterior: Field) -> None:
        """`encoder` and `decoder`."""
        self.encoder = told(self.config.encoder, self.spec.x, posterior, self.spec.cond)
        self.decoder = told(self.config.decoder, latent, self.observed.out, self.spec.cond)

    def prior_over(self) -> Prior:
        """The prior."""
        made: Prior = PRIORS[self.config.prior](self.config, self.spec, self.posterior)
        return made

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        self.over_latents.initialise(data, rng)

    def given(self, cond: Mapping[str, Tensor]) -> Batch:
        """Of the conditions those that the model is told; none may be absent."""
        return given(self, cond)

    # ------------------------------------------------------------------------------------------------- posterior and prior

    @property
    def context_size(self) -> int:
        """Numbers that the encoder makes besides μ and log σ², for `push`."""
        return 0

    def encoded(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """What the encoder makes of x: μ, log σ² and the context, `(N, 2 dim + context_size)`."""
        made: Tensor = self.encoder(x.to(self._dtype), **cond)
        return made

    def decoded(self, z: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """What the decoder makes of z: the numbers of p(x|z)."""
        made: Tensor = self.decoder(z.to(self._dtype), **cond)
        return made

    def likely(self, made: Tensor, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """log p(x|z) `(N,)` in nats, from what the decoder made of z."""
        return self.observed.log_prob(made, x)

    def infer(self, x: Tensor, **cond: Tensor) -> tuple[DiagonalGaussian, Tensor]:
        """N(μ, σ²), at least in float32, and the context `(N, context_size)`."""
        made = self.encoded(x, self.given(cond))
        mean, log_var, context = self.wide(made).tensor_split([self.config.dim, 2 * self.config.dim], 1)
        return DiagonalGaussian(mean, log_var), context

    def posterior(self, x: Tensor, **cond: Tensor) -> DiagonalGaussian:
        """q(z|x); where `gaussian` is false, that of z before `push`."""
        return self.infer(x, **cond)[0]

    def push(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """A draw of N(μ, σ²), at least in float32, to a draw of q(z|x), and log |det| `(N,)` of the way."""
        return z, z.new_zeros(len(z))

    def draw_posterior(self, q: DiagonalGaussian, context: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z `(N, dim)` of the posterior, and log q(z|x) `(N,)`."""
        z = q.draw(noise)
        log_q = q.log_prob(z)
        if self.gaussian:
            return z, log_q
        pushed, log_det = self.push(z.to(context), context)
        return pushed.to(z), log_q - log_det.to(z)

    def density(self, **cond: Tensor) -> Density:
        """log p(z) as a function of z, for many calls."""
        return self.over_latents.density(**cond)

    def log_prior(self, z: Tensor, **cond: Tensor) -> Tensor:
        """log p(z) `(N,)` in nats."""
        return self.density(**self.given(cond))(z)

    def divergence(self, q: DiagonalGaussian, z: Tensor, log_q: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """KL(q ‖ p) `(N,)` in nats: in closed form if there is one, else by the draw."""
        closed = self.over_latents.kl(q, **cond) if self.gaussian else None
        return log_q - self.density(**cond)(z) if closed is None else closed

    # ---------------------------------------------------------------------------------------------------------------- loss

    def objective(self, terms: Terms, turn: Turn) -> tuple[Tensor, Losses]:
        """What is minimised, `(N,)`, and what is logged besides the ELBO's terms."""
        return terms.recon + self.kl_weight(turn) * terms.kl, {}

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if self.config.objective == "iwae":
            return self._importance_loss(batch, turn)
        x, cond = batch["x"], self.given(batch)
        q, context = self.infer(x, **cond)
        with full_precision(x.device):
            z, log_q = self.draw_posterior(q, context, turn.rng.at("posterior").normal(q.mean.shape).to(q.mean))
        made = self.decoded(z, cond)
        with full_precision(x.device):
            recon = -self.likely(made.to(q.mean), x.to(q.mean), cond)
            kl = self.divergence(q, z, log_q, cond)
            each, more = self.objective(Terms(recon, kl, q, z), turn)
        return {"loss": each.mean(), "each": each, **self.shown(recon, kl), **more}

    def _importance_loss(self, batch: Batch, turn: Turn) -> Losses:
        """−IWAE-k, all draws in one call of the decoder."""
        k: int = self.config.draws
        x, cond = batch["x"], self.given(batch)
        q, context = self.infer(x, **cond)
        with full_precision(x.device):
            drawn = [self.draw_posterior(q, context, self._noise(turn.rng, i, q)) for i in range(k)]
            z, log_q = (torch.cat(parts) for parts in zip(*drawn, strict=True))
        many = {key: value.repeat(k, *[1] * (value.ndim - 1)) for key, value in {"x": x, **cond}.items()}
        xs = many.pop("x")
        made = self.decoded(z, many)
        with full_precision(x.device):
            recon = -self.likely(made.to(q.mean), xs.to(q.mean), many).view(k, -1)
            kl = (log_q - self.density(**many)(z)).view(k, -1)
            each = math.log(k) - (-recon - kl).logsumexp(0)
        return {"loss": each.mean(), "each": each, **self.shown(recon, kl, each.mean().detach())}

    def weighing(self, x: Tensor, rng: Rng, exact: torch.dtype, cond: Mapping[str, Tensor]) -> Weigh:
        told = self.given(cond)
        base, context = self.infer(x, **told)
        q, log_p = DiagonalGaussian(*(part.to(exact) for part in base)), self.density(**told)

        def weigh(i: int, closed: bool) -> Tensor:
            z, log_q = self.draw_posterior(q, context, self._noise(rng, i, q))
            likely = self.likely(self.decoded(z, told).to(z), x.to(z), told)
            return likely - self.divergence(q, z, log_q, told) if closed else likely + log_p(z) - log_q

        return weigh

    def _noise(self, rng: Rng, i: int, q: DiagonalGaussian) -> Tensor:
        return rng.at("posterior", i).normal(q.mean.shape).to(q.mean)

    # ------------------------------------------------------------------------------------------------------------- latents

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """z `(n, dim)`."""
        return self.over_latents.draw(n, rng, **self.given(cond)).to(self.device, self._dtype)

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """The mean of p(x|z)."""
        return self.observed.mean(self.decoded(z, self.given(cond)))

    def encode(self, x: Tensor, **cond: Tensor) -> Tensor:
        """The mean of q(z|x), or where `push` takes the mean of N(μ, σ²), `(N, dim)`."""
        q, context = self.infer(x, **cond)
        return q.mean if self.gaussian else self.push(q.mean, context)[0].to(q.mean)

    def reconstruct(self, x: Tensor, **cond: Tensor) -> Tensor:
        """x through the posterior's mean and back."""
        return self.decode(self.encode(x, **cond), **cond)
