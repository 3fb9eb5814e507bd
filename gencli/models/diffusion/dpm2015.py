"""Deep Unsupervised Learning using Nonequilibrium Thermodynamics (Sohl-Dickstein et al., 2015). arXiv:1503.03585

Offers: sample, bound

    q(x_t | x_{t−1}) = N(√(1 − β_t) x_{t−1}, β_t),   p(x_{t−1} | x_t) = N(√(1 − β_t) x_t + √β_t f_μ(x_t, t), f_Σ(x_t, t))

The Gaussian chain, its mean and variance learned, trained on the whole bound

    −K = Σ_{t≥2} KL(q(x_{t−1} | x_t, x_0) ‖ p) + KL(q(x_T | x_0) ‖ N(0, 1)) − E log p(x_0 | x_1)

in bits per dimension, one random t an item. The step to the data is not learned: p(x_0 | x_1) is the forward step turned round,
N(√(1 − β_1) x_1, β_1), so it and the prior are the exact entropies of the paper: H(X_1 | X_0) − H(X_T | X_0) + H(X_T), where
the data's mean square is 1. β_2 … β_T are learned, from β_t = 1 / (T − t + 2) on; β_1 is fixed. `dpm2015-binomial` is the
chain of bits.

In the coordinates x_0 + σ n of all denoisers a step from σ = t to s has D = x / (1 + t²) + c f_μ with
c = t² √((1 + s²) / ((1 + t²) (t² − s²))), and the last step D = x / (1 + t²).

Ours: f_Σ lies between β̃_t and β_t, the bounds that the paper proves for the entropy of a reverse step; the index is told
scaled to 1,000; labels with a null; images are dequantised by uniform noise. Density, not mass.

Errors: as in every denoiser.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Rng, Spec, Turn
from gencli.models.diffusion._chain import ChainModel, Steps, divergence, prior_nats, steps_of
from gencli.models.diffusion._family import Formulation, rows, spread_over_bins, variance_preserving, wide

TOLD = 1000  # what the network is told of the noisiest level, nearly


class Dpm2015(ChainModel):
    """A Gaussian chain with learned means, variances and noise."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"

    @dataclass(frozen=True)
    class Config:
        timesteps: int = opt(40, "steps T", low=2, high=100_000)
        first_beta: float = opt(1e-3, "β_1, the noise of the first step, which is not learned", low=1e-6, high=0.5)
        learned_betas: bool = opt(True, "learn the noise of the other steps")
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the network of mean and variance", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        shift = torch.zeros(config.timesteps - 1)
        if config.learned_betas:
            self.shift = nn.Parameter(shift)
        else:
            self.register_buffer("shift", shift)
        scale = TOLD / config.timesteps
        self.formulation = Formulation(
            skip=lambda s: 1 / (1 + s**2),
            out=lambda s: outs(self.rising().detach()).to(s.device)[self.index(s)],
            into=variance_preserving,
            noise=lambda s: self.index(s) * scale,
        )

    def outputs(self) -> int:
        return 2 * super().outputs()

    # -------------------------------------------------------------------------------------------------------------- levels

    def rising(self) -> Tensor:
        """The levels, cleanest first, as the learned β make them."""
        count = self.config.timesteps
        shift = wide(self.shift)
        first = torch.full_like(shift[:1], self.config.first_beta)
        start = 1 / torch.linspace(count, 2, count - 1, dtype=shift.dtype, device=shift.device)
        beta = torch.cat([first, torch.sigmoid(shift + torch.logit(start))])
        return torch.expm1(-torch.log1p(-beta).cumsum(0)).sqrt()

    @property
    def levels(self) -> Tensor:
        return self.rising().detach().flip(0).cpu()

    @property
    def mass(self) -> bool:
        """Never: data on a grid are dequantised."""
        return False

    # ----------------------------------------------------------------------------------------------------------- denoising

    def predict(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        return self.predict_both(x, sigma, **cond)[0]

    def predict_both(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """f_μ, and v in [0, 1] of the variance."""
        mean, out = super().predict(x, sigma, **cond).chunk(2, dim=1)
        return mean, torch.sigmoid(out)

    def denoise_spread(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """D, and v in [0, 1], of one call of the network."""
        sigma = wide(sigma)
        predicted, share = self.predict_both(x, sigma, **cond)
        return self.estimate_x0(x, sigma, predicted), share

    def reverse(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        return self.denoise_spread(x, sigma, **cond)

    # ------------------------------------------------------------------------------------------------------------ the loss

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """The bound of each item in bits per dimension, from one step; the mean over items."""
        data, cond = self.prepared(batch, turn.rng)
        middle = self.config.timesteps - 1
        step = turn.rng.at("levels").integers((len(data),), middle) + 1
        sigma = self.rising()
        steps, step = steps_of(sigma), step.to(sigma.device)
        here = sigma[step]
        noise = self.noise_like(data, cond, turn.rng.at("noise"))
        x = data + rows(here, data) * noise
        predicted, share = self.predict_both(x, here, **cond)
        mean = rows(self.formulation.skip(here), x) * x + rows(outs(sigma)[step], x) * predicted
        apart = rows(steps.gain[step], x) * (data - mean).square()
        nats = {
            "steps": middle * divergence(apart, share, rows(steps.gap[step], x)),
            "prior": prior_nats(data, sigma[-1].to(data)),
            "decoder": turned_nats(data, sigma[0].to(data)),
        }
        bits = {name: value / (data[0].numel() * math.log(2)) for name, value in nats.items()}
        each = torch.stack(list(bits.values())).sum(0)
        return {"loss": each.mean(), "each": each, **{name: value.detach().mean() for name, value in bits.items()}}

    def prepared(self, batch: Batch, rng: Rng) -> tuple[Tensor, Batch]:
        data, cond = super().prepared(batch, rng)
        return spread_over_bins(data, self.spec.x, rng.at("dequantise")), cond

    # ----------------------------------------------------------------------------------------------------------- the bound

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        return super().log_prob(spread_over_bins(x, self.spec.x, rng.at("dequantise")), rng, samples, **cond)

    def _decoder(self, x: Tensor, sigma: Tensor, steps: Steps, rng: Rng, **cond: Tensor) -> Tensor:
        return turned_nats(x, sigma[0])


def outs(rising: Tensor) -> Tensor:
    """What f_μ counts in D, at each level; nothing at the first, which the paper turns round."""
    t, s = rising[1:], rising[:-1]
    made = t**2 * ((1 + s**2) / ((1 + t**2) * (t**2 - s**2))).sqrt()
    return torch.cat([torch.zeros_like(made[:1]), made])


def turned_nats(x: Tensor, sigma: Tensor) -> Tensor:
    """−E log p(x_0 | x_1) `(N,)` for the forward step turned round: the entropy of x_1, and β_1 (x_0² − 1) / 2."""
    beta = sigma**2 / (1 + sigma**2)
    entropy = 0.5 * (1 + (2 * math.pi * beta).log())
    return (entropy + 0.5 * beta * (x.square() - 1)).flatten(1).sum(1)
