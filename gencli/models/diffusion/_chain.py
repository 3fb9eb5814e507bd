"""Chains of denoising steps over trained levels, and their variational bound (arXiv:2006.11239, arXiv:2102.09672).

A step leads from σ = t to the level s below it. Its variance lies between two that are known, in the coordinates x_0 + σ n

    β̃ = s² (t² − s²) / t²,   β = (1 + s²) (t² − s²) / (1 + t²),   log var = log β̃ + v g,   g = log β / β̃,   v in [0, 1]

and against the true step, which has the variance β̃, it costs

    KL(q(x_s | x_t, x_0) ‖ p(x_s | x_t)) = ½ Σ [e^(−v g) − 1 + v g + (1/s² − 1/t²) e^(−v g) (x_0 − D)²]   nats

with v a number for each dimension. The step that ends in the data has no true one: it is a Gaussian about D whose variance
lies between β̃_2 and β_1.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Field, Rng, Spec, full_precision
from gencli.errors import GencliError
from gencli.models.diffusion._family import DiffusionModel, rows
from gencli.models.diffusion._schedules import SCHEDULES, ScheduleName, shifted, sigmas, zero_terminal
from gencli.nn.discretised import discretised_gaussian


@dataclass(frozen=True)
class ChainSettings:
    """The settings of every chain whose schedule is one of DDPM's."""

    timesteps: int = opt(1000, "levels of noise T", low=2, high=100_000)
    schedule: ScheduleName = opt("linear", "how the noise grows")
    shift: bool = opt(False, "shift the log-SNR by 2 log(64 / side), as in simple diffusion")
    zero_terminal: bool = opt(False, "rescale the schedule to end without signal; needs prediction v or x0")
    prediction: Literal["eps", "x0", "v"] = opt("eps", "what the network predicts")


@dataclass(frozen=True)
class Steps:
    """What the bound asks of each step `(T,)`; the first ends in the data."""

    low: Tensor  # log β̃, the least log variance
    gap: Tensor  # g, how much more the greatest is
    gain: Tensor  # 1/s² − 1/t², what a squared error of D costs; 0 for the first, whose density says it


def steps_of(sigma: Tensor) -> Steps:
    """The steps of a chain whose levels ascend."""
    t, s = sigma[1:], sigma[:-1]
    small, large = reverse_variances(t, s)
    last = 1 + sigma[0] ** 2  # 1/ᾱ_1
    ends = torch.stack([(small[0] / last).log(), (sigma[0] ** 2 / last).log()])
    low, high = torch.cat([ends[:1], small.log()]), torch.cat([ends[1:], large.log()])
    return Steps(low, high - low, torch.cat([torch.zeros_like(low[:1]), 1 / s**2 - 1 / t**2]))


def divergence(apart: Tensor, share: Tensor, gap: Tensor) -> Tensor:
    """KL of each item `(N,)` in nats, from (1/s² − 1/t²) (x_0 − D)² `(N, …)`, v, and g `(N,)`."""
    wider = share * rows(gap, apart)
    each = torch.expm1(-wider) + wider + (-wider).exp() * apart
    return 0.5 * each.flatten(1).sum(1)


def nats_of(x: Tensor, mean: Tensor, log_variance: Tensor, field: Field) -> Tensor:
    """−log p(x) `(N,)` of the Gaussian: of its mass over the bins of the data's grid where they have one."""
    spread = (log_variance / 2).exp()
    if field.vocab is None or field.range is None:
        each = torch.distributions.Normal(mean, spread, validate_args=False).log_prob(x)
    else:
        width = (field.range[1] - field.range[0]) / (field.vocab - 1)
        each = discretised_gaussian(x, mean, spread, field.range, width)
    return -each.flatten(1).sum(1)


def reverse_variances(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """β̃ and β of the step from σ = t to s on any chain, in the coordinates x_0 + σ n."""
    fall = t**2 - s**2
    return s**2 * fall / t**2, (1 + s**2) * fall / (1 + t**2)


def prior_nats(x: Tensor, sigma: Tensor) -> Tensor:
    """KL(q(x_T | x_0) ‖ N(0, I)) `(N,)`."""
    kept = 1 / (1 + sigma**2)
    return 0.5 * (kept * (x.square() - 1) - torch.log1p(-kept)).flatten(1).sum(1)


def levels_of(config: ChainSettings, spec: Spec) -> Tensor:
    """The trained sigmas, descending."""
    alpha_bar = SCHEDULES[config.schedule](config.timesteps)
    if config.shift:
        if len(spec.x.shape) != 3:
            raise GencliError(
                f"shift needs images, the data are {spec.x.kind} of shape {spec.x.shape}", "leave out --shift"
            )
        alpha_bar = shifted(alpha_bar, spec.x.shape[-1])
    return sigmas(zero_terminal(alpha_bar) if config.zero_terminal else alpha_bar, config.prediction)


def nearest_level(rising: Tensor, sigma: Tensor) -> Tensor:
    """The place, from 0, of the level nearest to σ on a logarithmic scale."""
    rising = rising.to(sigma.device)
    return torch.searchsorted((rising[1:] * rising[:-1]).sqrt(), sigma.contiguous())


class ChainModel(DiffusionModel):
    """A chain of denoising steps; a subclass says what its levels are and what the variance of a step is."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"

    @property
    @abstractmethod
    def levels(self) -> Tensor:
        """The trained sigmas, descending, float64 on the CPU."""

    @abstractmethod
    def reverse(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """D at x of trained levels `(N,)`, and v, which broadcasts with x."""

    @property
    def mass(self) -> bool:
        """Whether `log_prob` is about the probability of a grid value rather than a density."""
        return self.spec.x.vocab is not None and self.spec.x.range is not None

    def index(self, sigma: Tensor) -> Tensor:
        """t − 1 of the trained level nearest to σ on a logarithmic scale."""
        return nearest_level(self.levels.flip(0), sigma)

    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        levels = self.levels if rng.device.type == "mps" else self.levels.to(rng.device)
        return levels[rng.integers((n,), len(levels)).to(levels.device)]

    # ------------------------------------------------------------------------------------------------------------ the bound

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
        return f"ELBO, {samples} of {len(self.levels) - 1} middle steps drawn an item" if samples else "ELBO"

    def bound_terms(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> dict[str, Tensor]:
        """The three parts of the bound, each `(N,)` nats: `prior` L_T, `steps` Σ L_t, `decoder` L_0."""
        with full_precision(x.device):
            x = x.double() if x.device.type != "mps" else x
            sigma = self.levels.flip(0).to(x)  # ascending
            steps = steps_of(sigma)
            return {
                "prior": prior_nats(x, sigma[-1]),
                "steps": self._middle(x, sigma, steps, rng, samples, **cond),
                "decoder": self._decoder(x, sigma, steps, rng.at("decoder"), **cond),
            }

    def _middle(self, x: Tensor, sigma: Tensor, steps: Steps, rng: Rng, samples: int, **cond: Tensor) -> Tensor:
        middle = len(sigma) - 1
        parts = samples or middle
        total = x.new_zeros(len(x))
        for part in range(parts):
            stream = rng.at("step", part)
            inside = stream.at("which").uniform((len(x),)).to(x) if samples else x.new_zeros(len(x))
            t = ((part + inside) * (middle / parts)).long().clamp(max=middle - 1) + 1  # 1 … T − 1
            mean, share = self._clipped(x, sigma[t], stream, **cond)
            total += divergence(rows(steps.gain[t], x) * (x - mean).square(), share, steps.gap[t])
        return total * (middle / parts)

    def _decoder(self, x: Tensor, sigma: Tensor, steps: Steps, rng: Rng, **cond: Tensor) -> Tensor:
        """−log p(x_0 | x_1)."""
        mean, share = self._clipped(x, sigma[0].expand(len(x)), rng, **cond)
        return nats_of(x, mean, steps.low[0] + share * steps.gap[0], self.spec.x)

    def _clipped(self, x: Tensor, sigma: Tensor, rng: Rng, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """D at x with fresh noise of level σ, kept inside the data's range as its samplers do, and v."""
        mean, share = self.reverse(x + rows(sigma, x) * rng.normal(x.shape).to(x), sigma, **cond)
        return mean if self.spec.x.range is None else mean.clamp(*self.spec.x.range), share


class ScheduledChain(ChainModel):
    """A chain whose settings are `ChainSettings`."""

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        self._levels = levels_of(config, spec)

    @property
    def levels(self) -> Tensor:
        return self._levels
