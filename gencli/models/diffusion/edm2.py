"""Analyzing and Improving the Training Dynamics of Diffusion Models (Karras et al., 2023). arXiv:2312.02696

Offers: sample, exact density

EDM's denoiser with a network whose weights, activations and updates keep their magnitude (`edm2-unet`), trained by

    loss = E [λ(σ) / e^u(σ) ‖D − x0‖² + u(σ)]        (equation 21)

where λ ‖D − x0‖² is EDM's loss and u, the log-variance of that loss at each level, is learned with it from waves of ¼ log σ.
At its best u(σ) = log E[λ ‖D − x0‖²], so that every level's gradient has the same size. It is needed in training only.

After every step each output's weights are put back to root mean square 1 (forced weight normalisation), so that the learning
rate alone says how fast directions turn: use the schedule `rsqrt`. Averages of several widths (`ema_profiles`) leave the choice
of the best one for after training: `gencli convert RUN --ema 0.08`.

Training levels: log σ ~ N(−0.4, 1) for latents, N(−0.8, 1.6²) for images of 64×64.

Ours: errors are means over dimensions and the trainer refuses a loss that is not finite, where the authors' code sums and sets
such gradients to 0; labels may be dropped, which gives a null label to guide by. Any network of the role `denoise` will do;
only layers that keep magnitudes are normalised.

Errors: those of edm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Spec, Turn, full_precision
from gencli.models.diffusion.edm import Edm
from gencli.nn.magnitude import LogVariance, normalise_weights


class Edm2(Edm):
    """A preconditioned denoiser whose loss says how uncertain it is at each level."""

    training_only: ClassVar[tuple[str, ...]] = ("log_variance.",)

    @dataclass(frozen=True)
    class Config(Edm.Config):
        p_mean: float = opt(-0.4, "mean of log σ in training")
        p_std: float = opt(1.0, "standard deviation of log σ in training", low=1e-3)
        waves: int = opt(128, "waves of the level from which the loss's log-variance is learned", low=1)
        net: Part = part("networks", "edm2-unet", "the denoising network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        self.log_variance = LogVariance(config.waves)

    def errors(self, data: Tensor, noise: Tensor, sigma: Tensor, cond: Batch) -> Tensor:
        """`(N,)` EDM's loss, weighted by how uncertain it is at each level."""
        with full_precision(data.device):
            u = self.log_variance(self.formulation.noise(sigma).to(data.device, torch.float32))
        error = super().errors(data, noise, sigma, cond)
        return error / u.exp() + u

    def after_step(self, turn: Turn) -> None:
        normalise_weights(self)
