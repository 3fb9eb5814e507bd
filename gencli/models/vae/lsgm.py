"""Score-based Generative Modeling in Latent Space (Vahdat, Kreis & Kautz, 2021). arXiv:2106.05931

Offers: sample, bound, encode, reconstruct

A VAE whose prior over latents is a diffusion model, trained together with encoder and decoder:

    loss = E_q[−log p(x|z)] + CE(q(z|x) ‖ p(z)) − H(q(z|x)),   dz = −½ β(t) z dt + √β(t) dw,   z_t = √(1 − σ_t²) z + σ_t ε
    CE   = E_t [ β(t) / (2 σ_t²) · ‖ε − ε_θ(z_t, t)‖² ] + (d/2) log(2πe σ_0²) + KL(q(z_1) ‖ N(0, I))
    ε_θ  = (1 − a) σ_t z_t + a ε'_θ(z_t, t)

The second line is the paper's theorem 1. The mixed score, a in (0, 1) for each latent, is that of N(0, I) at a = 0, so that the
network learns what the latents are besides. `weighting` is of the prior's own loss: `likelihood` trains all three by the bound
above; `unweighted` drops β / σ² for the prior, whose gradient then does not reach the encoder, nor the encoder's bound the
prior (algorithms 2 and 3), as for the paper's best pictures. Here as there β rises from 0.1 to 20.

Samples and bounds are of the prior that its probability-flow ODE defines, integrated in log(σ / √(1 − σ²)) by `ode_steps` equal
steps of the classical fourth order: log p(z) is N(·; 0, I) at the end and the exact trace on the way, so that ELBO, IWAE-k and
samples speak of one model. CE is of the SDE's prior and stands in training alone.

Ours: nine times in ten t is drawn so that log σ_t² is uniform, as in the paper, and else uniformly, each weighed by the density
of both together, for the first alone has heavy tails at t = 1; noise of variance `floor` is a part of the posterior,
where the paper begins at t = 0.01; a begins at 0.05; any network of role `denoise` over flat latents, told log(σ / √(1 − σ²)).
The paper first trains a VAE with N(0, I): here a warm-up (`kl_warmup`), with which the prior learns from the first step.

Latents are flat, `(N, dim)`. Raises GencliError as `vae` does, and for the objective iwae.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torchdiffeq
from torch import Tensor, nn
from torch.func import functional_call

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models.vae._family import GaussianVAE, Settings, Terms
from gencli.models.vae._priors import Density, Prior
from gencli.nn import trace
from gencli.nn.gaussian import DiagonalGaussian, standard_normal

BETA = (0.1, 20.0)
MIX = 0.05  # a at first
SHARE = 0.9  # of times that are drawn for the likelihood


class Noised(NamedTuple):
    """A latent at a time: z_t and the noise in it `(N, dim)`, σ_t² and the weight β / (2 σ_t² r) `(N,)`, 1 / r `(N,)`."""

    z: Tensor
    noise: Tensor
    var: Tensor
    weight: Tensor
    rarity: Tensor


class ScorePrior(Prior):
    """What a network knows of noise in latents, mixed with what N(0, I) says of it."""

    def __init__(self, config: Any, spec: Any, posterior: Any) -> None:
        super().__init__(config, spec, posterior)
        self.floor, self.steps = config.floor, config.ode_steps
        self.net = config.net.build(Field("latent", (config.dim,)), config.dim, {})
        self.mix = nn.Parameter(torch.full((config.dim,), math.log(MIX / (1 - MIX))))
        integral = (BETA[0] + BETA[1]) / 2
        self.last = 1 - (1 - self.floor) * math.exp(-integral)  # σ_1²
        self.first, self.final = (0.5 * math.log(v / (1 - v)) for v in (self.floor, self.last))

    def forward(self, z: Tensor, var: Tensor) -> Tensor:
        """ε_θ `(N, dim)` of z_t at σ_t² `(N,)`."""
        a, sigma = self.mix.to(z).sigmoid(), var.sqrt()[:, None]
        made = self.net(z.to(self.mix), (0.5 * (var / (1 - var)).log()).to(self.mix)).to(z)
        return (1 - a) * sigma * z + a * made

    # ------------------------------------------------------------------------------------------------------ cross-entropy

    def noised(self, z: Tensor, rng: Rng) -> Noised:
        """z at a time drawn for each."""
        n, span = len(z), math.log(self.last / self.floor)
        u = rng.at("time").uniform((n, 2), torch.float64).to(z)
        even = self.var_at(u[:, 1])
        geometric = self.floor * (span * u[:, 1]).exp()
        var = torch.where(u[:, 0] < SHARE, geometric, even)
        beta = self.beta_at(var)
        density = SHARE * beta * (1 - var) / (var * span) + 1 - SHARE  # of t
        noise = rng.at("noise").normal(z.shape).to(z)
        moved = (1 - var).sqrt()[:, None] * z + var.sqrt()[:, None] * noise
        return Noised(moved, noise, var, beta / (2 * var * density), 1 / density)

    def var_at(self, t: Tensor) -> Tensor:
        """σ_t² at times in [0, 1]."""
        integral = BETA[0] * t + (BETA[1] - BETA[0]) * t.square() / 2
        return 1 - (1 - self.floor) * (-integral).exp()

    def beta_at(self, var: Tensor) -> Tensor:
        """β(t) where the variance of the noise is σ_t²: the square of β is linear in its integral."""
        integral = ((1 - self.floor) / (1 - var)).log()
        return (BETA[0] ** 2 + 2 * (BETA[1] - BETA[0]) * integral).clamp(min=BETA[0] ** 2).sqrt()

    def apart(self, noised: Noised, frozen: bool) -> Tensor:
        """‖ε − ε_θ‖² `(N,)`; `frozen` weights get no gradient."""
        if frozen:
            weights = {key: value.detach() for key, value in self.named_parameters()}
            made = functional_call(self, weights, (noised.z, noised.var))
        else:
            made = self(noised.z, noised.var)
        return (noised.noise - made).square().sum(1)

    def constant(self, z: Tensor) -> Tensor:
        """What of CE no network changes, `(N,)`, of latents without noise."""
        start = 0.5 * self.dim * (1 + math.log(2 * math.pi * self.floor))
        end = 0.5 * ((1 - self.last) * (z.square() - 1) - math.log(self.last)).sum(1)
        return start + end

    # --------------------------------------------------------------------------------------------- probability-flow ODE

    def speed(self, log_ratio: Tensor, z: Tensor) -> Tensor:
        """dz / d log(σ / √(1 − σ²)) = σ ε_θ − σ² z."""
        var = (2 * log_ratio).sigmoid()
        return var.sqrt() * self(z, var.expand(len(z))) - var * z

    def density(self, **cond: Tensor) -> Density:
        return self.log_prob_of

    @torch.no_grad()
    def log_prob_of(self, z: Tensor) -> Tensor:
        """log p(z) `(N,)`; its gradient is not needed, as CE takes its place in training."""

        def along(at: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                here = state[0].detach().requires_grad_()
                moved = self.speed(at, here)
                volume = trace.exact()(moved, here)
            return moved.detach(), volume.detach()

        begin = (z, z.new_zeros(len(z)))
        ends, volumes = torchdiffeq.odeint(along, begin, self._grid(z), method="rk4")
        return standard_normal(ends[-1]) + volumes[-1]

    @torch.no_grad()
    def draw(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        noise = rng.normal((n, self.dim)).to(self.mix)
        made: Tensor = torchdiffeq.odeint(self.speed, noise, self._grid(noise).flip(0), method="rk4")[-1]
        return made

    def _grid(self, like: Tensor) -> Tensor:
        return torch.linspace(self.first, self.final, self.steps + 1, dtype=torch.float64).to(like)


class LSGM(GaussianVAE):
    """A Gaussian posterior, a diffusion prior."""

    config: Any
    over_latents: ScorePrior

    @dataclass(frozen=True)
    class Config(Settings):
        classes: bool = opt(False, "encoder and decoder are told the class label")
        weighting: Literal["unweighted", "likelihood"] = opt("unweighted", "of times in the prior's own loss")
        floor: float = opt(1e-3, "variance of the noise that latents always have", low=1e-6, high=0.1)
        ode_steps: int = opt(40, "steps of the prior's ODE, in samples and bounds", low=1)
        net: Part = part("networks", "denoising-mlp", "network of the prior", role="denoise")

    def __init__(self, config: Any, spec: Spec) -> None:
        if config.objective == "iwae":
            raise GencliError("lsgm has no objective iwae: its bound in training is of one draw", "--objective elbo")
        super().__init__(config, spec)

    def prior_over(self) -> Prior:
        return ScorePrior(self.config, self.spec, self.posterior)

    def infer(self, x: Tensor, **cond: Tensor) -> tuple[DiagonalGaussian, Tensor]:
        clean, context = super().infer(x, **cond)
        return self._with_floor(clean), context

    def _with_floor(self, clean: DiagonalGaussian) -> DiagonalGaussian:
        """The posterior of latents with noise from that of latents without."""
        floor = self.config.floor
        return DiagonalGaussian(math.sqrt(1 - floor) * clean.mean, ((1 - floor) * clean.log_var.exp() + floor).log())

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x, cond, floor = batch["x"], self.given(batch), self.config.floor
        rng = turn.rng.at("posterior")
        clean, _ = super().infer(x, **cond)
        with full_precision(x.device):
            q = self._with_floor(clean)
            first = clean.draw(rng.at("clean").normal(q.mean.shape).to(q.mean))
            z = math.sqrt(1 - floor) * first + math.sqrt(floor) * rng.at("floor").normal(q.mean.shape).to(q.mean)
        made = self.decoded(z, cond)
        with full_precision(x.device):
            recon = -self.likely(made.to(q.mean), x.to(q.mean), cond)
            entropy = 0.5 * (1 + math.log(2 * math.pi) + q.log_var).sum(1)
            cross, fit = self.cross_entropy(first, turn.rng.at("diffusion"))
            kl = cross - entropy
            each, more = self.objective(Terms(recon, kl, q, z), turn)
            each = each + fit
        return {
            "loss": each.mean(),
            "each": each,
            **self.shown(recon, kl),
            "mix": self.over_latents.mix.detach().sigmoid().mean(),
            **more,
        }

    def cross_entropy(self, z: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """An estimate of CE `(N,)` of latents without noise, and the prior's own loss `(N,)`, 0 where that is CE."""
        prior = self.over_latents
        noised, separate = prior.noised(z, rng), self.config.weighting == "unweighted"
        cross = noised.weight * prior.apart(noised, frozen=separate) + prior.constant(z)
        if not separate:
            return cross, torch.zeros_like(cross)
        alone = noised._replace(z=noised.z.detach())
        return cross, alone.rarity * prior.apart(alone, frozen=False)
