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
from typing import Literal

from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Spec
from gencli.models.diffusion._chain import ChainSettings, ScheduledChain
from gencli.models.diffusion._family import FORMULATIONS, rows


class Ddpm(ScheduledChain):
    """A chain of denoising steps, trained one level at a time."""

    @dataclass(frozen=True)
    class Config(ChainSettings):
        variance: Literal["small", "large"] = opt(
            "small", "variance of the reverse steps in the bound: small β̃, large β"
        )
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the denoising network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        self.formulation = FORMULATIONS[config.prediction](self.index)

    def reverse(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """v is 0 or 1, and 0 in the step to the data."""
        share = (self.index(sigma) > 0).to(x) * float(self.config.variance == "large")
        return self.denoise(x, sigma, **cond), rows(share, x)
