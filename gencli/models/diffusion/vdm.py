"""Variational Diffusion Models (Kingma, Salimans, Poole & Ho, 2021). arXiv:2107.00630

Offers: sample, bound

    z_t = √sigmoid(−γ(t)) y + √sigmoid(γ(t)) n,   −log p(x) ≤ KL(q(z_1 | x) ‖ N(0, I)) + E[−log p(x | z_0)] + L

    L = ½ E_{t, n} γ'(t) ‖n − F(z_t, γ(t))‖²,   or with T steps   L_T = ½ T E (e^{γ(t) − γ(s)} − 1) ‖n − F‖²,  s = t − 1/T

in bits per dimension is the loss, and nothing else. γ is learned: `linear`, b + |w| t, or `network`, a monotone network
between ends of the same two parameters. L depends on γ's ends alone; what lies between changes only how much its estimate
varies, and is trained to make E[L²] small (by the gradient of L, times 2L of each item). With T steps γ is trained by L_T.
Times of a batch are evenly spread, (u + i / B) mod 1.

y = x (V − 1) / V for data of V grey levels in [−1, 1], whose bins then have the width 2 / V and fill [−1, 1]; p(x | z_0) is the
softmax of the Gaussian's density at the V values. Data without a grid have the Gaussian's density. In the coordinates x_0 + σ n
of all denoisers σ = e^{γ/2} V / (V − 1). The network is told 1000 (γ − γ_min) / (γ_max − γ_min), from the settings.

Ours: labels with a null; ρ(t) = m(t) − m(0) over m(1) − m(0), so that γ's ends are b and b + |w| with the network too; m is
t plus the mean of 1,024 sigmoids.

Errors: gamma_min that is not below gamma_max.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models.diffusion._chain import prior_nats
from gencli.models.diffusion._family import DiffusionModel, Formulation, wide

UNITS = 1024  # of the monotone network
TOLD = 1000  # what the network is told of the noisiest level
FAR = 16.0  # deviations beyond which a grey level has no share in the softmax: e^-32 for noise six deviations out


class Vdm(DiffusionModel):
    """A denoiser trained by its likelihood, with the noise schedule it learned."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"
    levels = None

    @dataclass(frozen=True)
    class Config:
        gamma: Literal["linear", "network"] = opt("linear", "the learned γ(t), minus the log signal-to-noise ratio")
        gamma_min: float = opt(-13.3, "γ at the data before training")
        gamma_max: float = opt(5.0, "γ at the noise before training")
        timesteps: int = opt(0, "steps T of the bound; 0 = continuous time", low=0, high=100_000)
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "vdm-unet", "the denoising network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        low, high = config.gamma_min, config.gamma_max
        if low >= high:
            raise GencliError(f"gamma_min {low} is not below gamma_max {high}", "the paper has -13.3 and 5")
        super().__init__(config, spec)
        self.gamma = Gamma(low, high, UNITS if config.gamma == "network" else 0)
        self.scale = 1.0 if spec.x.vocab is None or spec.x.range is None else (spec.x.vocab - 1) / spec.x.vocab
        a = self.scale
        self.formulation = Formulation(
            skip=torch.ones_like,
            out=lambda s: -s,
            into=lambda s: a / (1 + (a * s) ** 2).sqrt(),
            noise=lambda s: TOLD * (2 * (a * s).log() - low) / (high - low),
        )

    @property
    def mass(self) -> bool:
        """Whether `log_prob` is about the probability of a grid value rather than a density."""
        return self.spec.x.vocab is not None and self.spec.x.range is not None

    # -------------------------------------------------------------------------------------------------------------- levels

    @torch.no_grad()
    def sigma_at(self, u: Tensor) -> Tensor:
        """σ at time u in [0, 1]."""
        return self.sigma_of(self.gamma(u)[0])

    def sigma_of(self, gamma: Tensor) -> Tensor:
        """σ from γ."""
        return (gamma / 2).exp() / self.scale

    @property
    def sigma_min(self) -> float:
        """σ at the data."""
        return float(self.sigma_at(torch.zeros(1)))

    @property
    def sigma_max(self) -> float:
        """σ at the noise."""
        return float(self.sigma_at(torch.ones(1)))

    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        return self.sigma_at(rng.stratified(n))

    # ------------------------------------------------------------------------------------------------------------ the loss

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        """The bound of each item in bits per dimension, and its three parts."""
        rng = turn.rng
        data, cond = self.prepared(batch, rng)
        bits = 1 / (data[0].numel() * math.log(2))
        with full_precision(data.device):
            prior, decoder = self._ends(data, rng.at("decoder"))
        steps = self._steps(data, rng.at("levels").stratified(len(data)), rng.at("noise"), cond, train=True)
        each = ((prior + decoder) * bits).to(data) + (steps * bits).to(data)
        parts = {"prior": prior, "reconstruction": decoder, "diffusion": steps}
        return {
            "loss": each.mean(),
            "each": each,
            **{name: (value.detach() * bits).mean().float() for name, value in parts.items()},
        }

    def _ends(self, data: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """KL(q(z_1 | x) ‖ N(0, I)) and E[−log p(x | z_0)], each `(N,)` nats."""
        data = data.double() if data.device.type != "mps" else data
        ends = self.sigma_of(self.gamma(torch.tensor([0.0, 1.0]))[0]).to(data)
        prior = prior_nats(data * self.scale, ends[1] * self.scale)
        noise = rng.normal(data.shape).to(data)
        if not self.mass:
            return prior, (noise.square() / 2 + (2 * math.pi * ends[0] ** 2).log() / 2).flatten(1).sum(1)
        span, vocab = self.spec.x.range, self.spec.x.vocab
        assert span is not None and vocab is not None
        return prior, -log_softmax_of_levels(data, noise, ends[0], span, vocab).flatten(1).sum(1)

    def _steps(self, data: Tensor, time: Tensor, rng: Rng, cond: Batch, train: bool = False) -> Tensor:
        """L or L_T of each item `(N,)` at times in [0, 1), in nats."""
        count, noise, time = self.config.timesteps, rng.normal(data.shape).to(data), wide(time)
        if count:
            later = (time * count).floor() + 1
            gamma, _, _ = self.gamma(later / count)
            weight = count * torch.expm1(gamma - self.gamma((later - 1) / count)[0])
            between: tuple[Tensor, ...] = ()
        else:
            gamma, weight, between = self.gamma(time)
        squares = self.errors(data, noise, self.sigma_of(gamma), cond) * data[0].numel()
        nats = 0.5 * weight.to(squares) * squares
        if train:
            self._calm(between, nats)
        return nats

    def _calm(self, between: tuple[Tensor, ...], nats: Tensor) -> None:
        """Turn the gradient of L into that of L² (per dimension) for what shapes γ between its ends."""
        twice = 2 * nats.detach() / self.spec.x.size
        for value in between:
            if value.requires_grad:
                value.register_hook(lambda gradient: gradient * twice.to(gradient))

    # ----------------------------------------------------------------------------------------------------------- the bound

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """Minus the bound `(N,)` in nats, its integral over time by one draw from each of `samples` equal parts."""
        with full_precision(x.device):
            x = x.double() if x.device.type != "mps" else x
            prior, decoder = self._ends(x, rng.at("decoder"))
            steps = torch.zeros_like(prior)
            for part_ in range(samples):
                stream = rng.at("step", part_)
                time = (wide(stream.at("which").uniform((len(x),))) + part_) / samples
                steps += self._steps(x, time, stream, cond)
            return -(prior + decoder + steps / samples)

    def estimate(self, samples: int) -> str:
        """What `log_prob` of that many draws is."""
        within = f"of {self.config.timesteps} steps" if self.config.timesteps else "in continuous time"
        return f"ELBO {within}, {samples} drawn an item"


class Gamma(nn.Module):
    """γ(t) = b + |w| ρ(t), rising, with ρ(0) = 0 and ρ(1) = 1."""

    def __init__(self, low: float, high: float, units: int) -> None:
        super().__init__()
        self.b, self.w = nn.Parameter(torch.tensor(low)), nn.Parameter(torch.tensor(high - low))
        self.between = Monotone(units) if units else None

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """γ and γ' `(N,)` in float64, and what of them depends on the network alone."""
        time = wide(time)
        b, w = self.b.to(time), self.w.abs().to(time)
        if self.between is None:
            return b + w * time, w.expand_as(time), ()
        ends, _ = self.between(torch.tensor([0.0, 1.0]).to(time))
        value, slope = self.between(time)
        rho, rate = (value - ends[0]) / (ends[1] - ends[0]), slope / (ends[1] - ends[0])
        return b + w * rho, w * rate, (rho, rate)


class Monotone(nn.Module):
    """m(t) = t + mean_j |a_j| tanh((|w_j| (2t − 1) + b_j) / 2), and m'(t)."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.inner, self.bias, self.outer = (nn.Parameter(torch.empty(units)) for _ in range(3))
        for weight in (self.inner, self.outer):
            nn.init.normal_(weight, std=0.1)
        nn.init.zeros_(self.bias)

    def forward(self, time: Tensor) -> tuple[Tensor, Tensor]:
        inner, bias, outer = self.inner.abs().to(time), self.bias.to(time), self.outer.abs().to(time)
        bent = torch.tanh((inner * (2 * time[:, None] - 1) + bias) / 2)
        return time + (outer * bent).mean(1), 1 + (outer * inner * (1 - bent**2)).mean(1)


def log_softmax_of_levels(x: Tensor, noise: Tensor, sigma: Tensor, span: tuple[float, float], vocab: int) -> Tensor:
    """log p of the grey levels x given x + σ noise: the softmax over all levels of the Gaussian's log density there.

    Levels too far away to count in float64 are left out of the sum.
    """
    width = (span[1] - span[0]) / (vocab - 1)
    reach = min(math.ceil(FAR * float(sigma.detach()) / width), vocab - 1)
    at, last = ((x - span[0]) / width).round(), vocab - 1
    own = total = -(noise**2) / 2
    for step in [sign * size for size in range(1, reach + 1) for sign in (1, -1)]:
        there = (at + step >= 0) & (at + step <= last)
        logit = -((noise - step * width / sigma) ** 2) / 2
        total = torch.logaddexp(total, torch.where(there, logit, -math.inf))
    return own - total
