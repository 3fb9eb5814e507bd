"""Latent Diffusion: the KL-regularised autoencoder (Rombach, Blattmann, Lorenz, Esser & Ommer, 2021). arXiv:2112.10752

Offers: encode, reconstruct

    generator       L = L_rec + κ KL(q(z|x) ‖ N(0, I)) / D + λ w L_gan,   q(z|x) = N(μ(x), diag σ²(x)),   z = μ + σ ε

with L_rec, L_gan, λ and the discriminator as of `vqgan`, and D the numbers of x, over which L_rec is a mean. κ is so small,
10⁻⁶, that z is hardly compressed by it: it keeps z near 0, and only just noisy. z is a grid `(dim, h, w)`; a diffusion model
of it is trained by `gencli train ddpm --codec RUN`.

Encoded are the means over their deviation, so that latents have variance 1 as denoisers expect. The deviation is a running
one of all means in training, kept with the weights: it is the codec's, not the diffusion model's. (Released: 1/std of
one batch, kept with the diffusion model, and a draw of z instead of its mean, from which it cannot be told at this κ.)

Constants are the released code's: κ 10⁻⁶, w 0.5, p 1, λ's least 10⁻⁴. With three halvings and 4 numbers in z, 83,653,863
parameters. Ours: log σ² within ±20 of the encoder's raw output (there within −30 … 20); the discriminator's lead.

Raises GencliError as of `vqgan`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Field, Phase, Spec, Turn
from gencli.models.vae._judged import Judged, JudgedConfig, Made
from gencli.models.vae._quantised import GridAutoencoder

WIDE = 20.0
MEMORY = 200  # steps that the running variance looks back


class KLAutoencoder(Judged, GridAutoencoder):
    """Encoder to a Gaussian at each place, decoder, and a discriminator of patches."""

    training_only: ClassVar[tuple[str, ...]] = ("discriminator.", "watch.")
    least: ClassVar[float] = 1e-4

    @dataclass(frozen=True)
    class Config(JudgedConfig):
        dim: int = opt(4, "numbers at a place of the latent", low=1)
        kl_weight: float = opt(1e-6, "κ: weight of the divergence from the normal distribution", low=0)
        disc_weight: float = opt(0.5, "weight of the adversarial term beside its balance; 0 = none", low=0)
        encoder: Part = part("networks", "vqgan-encoder", "network from x to means and log-variances", role="map")
        decoder: Part = part("networks", "vqgan-decoder", "network from the latent to x", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec, 2 * config.dim, into=config.dim)
        self.judge_by(config, spec)
        self.latent = Field("latent", (config.dim, *self.grid))
        self.spread = Spread()

    def phases(self) -> list[Phase]:
        return [Phase("generator", (self.encoder, self.decoder)), Phase("discriminator", (self.discriminator,))]

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ and log σ² `(N, dim, h, w)`."""
        mean, log_variance = self.encoder(x).to(x.dtype).chunk(2, 1)
        return mean, log_variance.clamp(-WIDE, WIDE)

    def made_of(self, x: Tensor, turn: Turn) -> Made:
        mean, log_variance = self.moments(x)
        z = mean + (log_variance / 2).exp() * turn.rng.at("latent").normal(mean.shape).to(mean)
        if self.training:
            self.spread.see(mean)
        with core.full_precision(x.device):
            kl = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1) / 2
            extra = self.config.kl_weight * kl / x[0].numel()
        logged = {"kl": kl.mean().detach(), "deviation": self.spread.deviation.detach()}
        return Made(self.decoder(z).to(x.dtype), extra, logged)

    def after_step(self, turn: Turn) -> None:
        super().after_step(turn)
        if turn.phase != "discriminator":
            self.spread.update()

    def encode(self, x: Tensor) -> Tensor:
        """Means of variance 1 `(N, dim, h, w)`."""
        return self.moments(x)[0] / self.spread.deviation

    def decode(self, z: Tensor) -> Tensor:
        """x from latents of variance 1."""
        return self.decoder(z.to(self.spread.deviation) * self.spread.deviation)


class Spread(nn.Module):
    """The running deviation of all numbers that were seen."""

    deviation: Tensor
    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("deviation", torch.ones(()))
        self.register_buffer("steps", torch.zeros(()))
        self._pending: Tensor | None = None

    def see(self, z: Tensor) -> None:
        """A micro-batch."""
        wide = z.detach().float()
        seen = torch.stack([wide.sum(), wide.square().sum(), torch.full((), wide.numel(), device=z.device)])
        self._pending = seen if self._pending is None else self._pending + seen

    def update(self) -> None:
        """After each step, on every process: the first steps count as many as there were."""
        pending, self._pending = self._pending, None
        total, squares, count = core.all_reduce(torch.zeros(3).to(self.deviation) if pending is None else pending)
        if not count:
            return
        self.steps += 1
        share = torch.clamp(1 / self.steps, min=1 / MEMORY)
        variance = (squares / count - (total / count) ** 2).clamp(min=1e-12)
        self.deviation.copy_(torch.lerp(self.deviation.square(), variance, share).sqrt())
