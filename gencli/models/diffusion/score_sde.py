"""Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2021). arXiv:2011.13456

Offers: sample, exact density

    x_t = α_t x_0 + s_t n,   loss = E_t ‖s_t score(x_t, t) + n‖²,   t ~ U(ε, 1)

    vp       α² = e^(−B),  s² = 1 − α²        network: −s · score from x_t, told 999 t          (DDPM++)
    sub-vp   α² = e^(−B),  s = 1 − α²         the same
    ve       α = 1,  s = low (high / low)^t    network: s · score from x_t, told log(s / 2)     (NCSN++)

with B = β_0 t + ½ (β_1 − β_0) t². In the coordinates x = x_0 + σ n of all denoisers σ = s / α. Sampled by the reverse SDE,
predictor and corrector, or the probability-flow ODE, whose density is the model's.

Ours: the mean over dimensions for all three; class labels with a null.

Errors: sigma_min that is not below sigma_max.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Rng, Spec
from gencli.errors import GencliError
from gencli.models.diffusion._family import ContinuousModel, Formulation, eps, score, variance_preserving
from gencli.samplers import _sdes as sdes

TRAINED_FROM = 1e-5  # ε of the loss


class ScoreSde(ContinuousModel):
    """A score network of continuous time."""

    @dataclass(frozen=True)
    class Config:
        sde: Literal["vp", "sub-vp", "ve"] = opt("vp", "the forward process")
        beta_min: float = opt(0.1, "β_0 of vp and sub-vp", low=0)
        beta_max: float = opt(20.0, "β_1 of vp and sub-vp", low=0.1)
        sigma_min: float = opt(0.01, "least noise of ve", low=1e-6)
        sigma_max: float = opt(50.0, "greatest noise of ve", low=1e-3)
        least_time: float = opt(
            1e-3, "t at which sampling ends; the paper has 1e-3 for vp and 1e-5 for ve", low=1e-6, high=0.1
        )
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the score network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        if config.sde == "ve" and config.sigma_min >= config.sigma_max:
            raise GencliError(
                f"sigma_min {config.sigma_min} is not below sigma_max {config.sigma_max}", "the paper has 0.01 and 50"
            )
        self._sigma, self._time = _curves(config)
        self.formulation = _formulation(config, self._time)
        self.process = "ve" if config.sde == "ve" else "vp"
        first, last = torch.tensor([config.least_time, 1.0], dtype=torch.float64, device="cpu")
        self.sigma_min, self.sigma_max = float(self._sigma(first)), float(self._sigma(last))
        super().__init__(config, spec)

    def sigma_at(self, u: Tensor) -> Tensor:
        least = self.config.least_time
        return self._sigma(least + u.double() * (1 - least))

    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        return self._sigma(TRAINED_FROM + (1 - TRAINED_FROM) * rng.uniform((n,)).double())


Curve = Callable[[Tensor], Tensor]


def _curves(config: ScoreSde.Config) -> tuple[Curve, Curve]:
    """σ of t, and t of σ."""
    betas, ends = (config.beta_min, config.beta_max), (config.sigma_min, config.sigma_max)
    if config.sde == "ve":
        return lambda t: sdes.ve_sigma(t, *ends), lambda s: sdes.ve_time(s, *ends)
    if config.sde == "vp":
        return lambda t: sdes.vp_sigma(t, *betas), lambda s: sdes.vp_time(s, *betas)
    return lambda t: sdes.subvp_sigma(t, *betas), lambda s: sdes.subvp_time(s, *betas)


def _formulation(config: ScoreSde.Config, time: Curve) -> Formulation:
    if config.sde == "ve":
        return score(torch.ones_like, lambda s: (s / 2).log())
    into = variance_preserving if config.sde == "vp" else sdes.subvp_alpha
    made = eps(lambda s: 999 * time(s))
    return Formulation(made.skip, made.out, into, made.noise)
