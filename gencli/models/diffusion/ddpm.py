"""Denoising Diffusion Probabilistic Models (Ho, Jain & Abbeel, 2020). arXiv:2006.11239

Offers: sample, bound

    q(x_t | x_0) = N(√ᾱ_t x_0, (1 − ᾱ_t) I),   loss = E ‖n − F(x_t, t)‖²,   t = 1 … T

in the coordinates x = x_t / √ᾱ_t = x_0 + σ_t n with σ_t = √(1/ᾱ_t − 1). The network is told the index t − 1 of the nearest
trained level. With `schedule = linear`, `prediction = eps` and 1,000 steps this is the paper's model.

Bound (section 3): −log p(x_0) ≤ L_T + Σ KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)) + decoder, in nats. p's mean uses D clipped to
the data's range, as its sampler does; `variance` is p's: `small` β̃ or `large` β. The decoder is a Gaussian with the
variance β̃_2, whose mass over the bins of the data's grid makes the bound one of probabilities (`mass`); data without a grid
have the Gaussian's density.

Ours: other predictions (x0; v, arXiv:2202.00512), schedules (cosine, arXiv:2102.09672; sigmoid, arXiv:2301.10972), the shift
of simple diffusion (arXiv:2301.11093), an end without signal (arXiv:2305.08891), class labels with a null.

Errors: prediction eps with an end without signal; a shift for data that are no images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Rng, Spec, full_precision
from gencli.errors import GencliError
from gencli.models.diffusion._family import FORMULATIONS, DiffusionModel
from gencli.models.diffusion._schedules import SCHEDULES, ScheduleName, shifted, sigmas, zero_terminal
from gencli.nn.discretised import discretised_gaussian


class Ddpm(DiffusionModel):
    """A chain of denoising steps, trained one level at a time."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"

    @dataclass(frozen=True)
    class Config:
        timesteps: int = opt(1000, "levels of noise T", low=2, high=100_000)
        schedule: ScheduleName = opt("linear", "how the noise grows")
        shift: bool = opt(False, "shift the log-SNR by 2 log(64 / side), as in simple diffusion")
        zero_terminal: bool = opt(False, "rescale the schedule to end without signal; needs prediction v or x0")
        prediction: Literal["eps", "x0", "v"] = opt("eps", "what the network predicts")
        variance: Literal["small", "large"] = opt(
            "small", "variance of the reverse steps in the bound: small β̃, large β"
        )
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the denoising network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        self._levels = levels_of(config, spec)
        self.formulation = FORMULATIONS[config.prediction](self.index)

    @property
    def levels(self) -> Tensor:
        return self._levels

    @property
    def mass(self) -> bool:
        """Whether `log_prob` is about the probability of a grid value rather than a density."""
        return self.spec.x.vocab is not None and self.spec.x.range is not None

    def index(self, sigma: Tensor) -> Tensor:
        """t − 1 of the trained level nearest to σ on a logarithmic scale."""
        rising = self._levels.flip(0).to(sigma.device)
        return torch.searchsorted((rising[1:] * rising[:-1]).sqrt(), sigma.contiguous())

    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        levels = self._levels if rng.device.type == "mps" else self._levels.to(rng.device)
        return levels[rng.integers((n,), len(levels)).to(levels.device)]

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """Minus the variational bound `(N,)` in nats, unbiased.

        Args:
            x: data in model space.
            rng: noise, one row an item.
            samples: steps drawn for each item to estimate the sum over the T − 1 middle steps, one from each of `samples`
                equal parts of the chain; 0 takes every step. The first and the last term are always computed.
            cond: conditions.
        """
        return -torch.stack(list(self.bound_terms(x, rng, samples, **cond).values())).sum(0)

    def estimate(self, samples: int) -> str:
        """What `log_prob` of that many draws is."""
        return f"ELBO, {samples} of {len(self._levels) - 1} middle steps drawn an item" if samples else "ELBO"

    def bound_terms(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> dict[str, Tensor]:
        """The three parts of the bound, each `(N,)` nats: `prior` L_T, `steps` Σ L_t, `decoder` L_0."""
        with full_precision(x.device):
            x = x.double() if x.device.type != "mps" else x
            sigma = self._levels.flip(0).to(x)  # ascending
            return {
                "prior": _prior(x, sigma[-1]),
                "steps": self._steps(x, sigma, rng, samples, **cond),
                "decoder": self._decoder(x, sigma, rng, **cond),
            }

    def _steps(self, x: Tensor, sigma: Tensor, rng: Rng, samples: int, **cond: Tensor) -> Tensor:
        middle = len(sigma) - 1
        parts = samples or middle
        total = x.new_zeros(len(x))
        for part_ in range(parts):
            stream = rng.at("step", part_)
            inside = stream.at("which").uniform((len(x),)).to(x) if samples else x.new_zeros(len(x))
            t = ((part_ + inside) * (middle / parts)).long().clamp(max=middle - 1) + 1  # 1 … T − 1
            total += self._kl(x, sigma[t], sigma[t - 1], stream, **cond)
        return total * (middle / parts)

    def _kl(self, x: Tensor, t: Tensor, s: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        """KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)) of each item."""
        estimate = self._clipped(x, t, rng, **cond)
        small, large = reverse_variances(t, s)
        chosen = small if self.config.variance == "small" else large
        apart = (1 - s**2 / t**2) ** 2 * (x - estimate).flatten(1).square().sum(1)
        ratio = small / chosen
        return 0.5 * (apart / chosen + x[0].numel() * (ratio - 1 - ratio.log()))

    def _decoder(self, x: Tensor, sigma: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        """−log p(x_0 | x_1) by the Gaussian about D, over the bins of the data's grid where it has one."""
        mean = self._clipped(x, sigma[0].expand(len(x)), rng.at("decoder"), **cond)
        spread = (reverse_variances(sigma[1], sigma[0])[0] / (1 + sigma[0] ** 2)).sqrt()
        vocab, span = self.spec.x.vocab, self.spec.x.range
        if vocab is None or span is None:
            each = torch.distributions.Normal(mean, spread).log_prob(x)
        else:
            each = discretised_gaussian(x, mean, spread, span, (span[1] - span[0]) / (vocab - 1))
        return -each.flatten(1).sum(1)

    def _clipped(self, x: Tensor, sigma: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        """D at x with fresh noise of level σ, kept inside the data's range."""
        noise = rng.normal(x.shape).to(x)
        estimate = self.denoise(x + sigma.reshape(-1, *[1] * (x.ndim - 1)) * noise, sigma, **cond)
        return estimate if self.spec.x.range is None else estimate.clamp(*self.spec.x.range)


def levels_of(config: Ddpm.Config, spec: Spec) -> Tensor:
    """The trained sigmas, descending."""
    alpha_bar = SCHEDULES[config.schedule](config.timesteps)
    if config.shift:
        if len(spec.x.shape) != 3:
            raise GencliError(
                f"shift needs images, the data are {spec.x.kind} of shape {spec.x.shape}", "leave out --shift"
            )
        alpha_bar = shifted(alpha_bar, spec.x.shape[-1])
    return sigmas(zero_terminal(alpha_bar) if config.zero_terminal else alpha_bar, config.prediction)


def reverse_variances(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """β̃ and β of the step from σ = t to s on any chain, in the coordinates x_0 + σ n."""
    fall = t**2 - s**2
    return s**2 * fall / t**2, (1 + s**2) * fall / (1 + t**2)


def _prior(x: Tensor, sigma: Tensor) -> Tensor:
    """KL(q(x_T | x_0) ‖ N(0, I))."""
    kept = 1 / (1 + sigma**2)
    return 0.5 * (kept * (x.square() - 1) - torch.log1p(-kept)).flatten(1).sum(1)
