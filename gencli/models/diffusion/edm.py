"""Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022). arXiv:2206.00364

Offers: sample, exact density

    D(x; σ) = σd² / (σ² + σd²) x + σ σd / √(σ² + σd²) F(x / √(σ² + σd²), ¼ log σ),   loss = E λ(σ) ‖D − x0‖²

with λ = 1 / c_out², so that the loss is the squared error of F, whose inputs and targets have unit variance at every level;
log σ ~ N(p_mean, p_std²). σd is the standard deviation of the data: 0.5 for images in [−1, 1].

`augment` is the share p of the paper's appendix F.2: flips, scalings, rotations, stretchings and shifts, of which the network
is told (`augment`, nine numbers, zeros when sampling), so that they do not leak into samples.

The density is that of the probability-flow ODE from `sigma_min` to `sigma_max`.

Ours: geometry by bilinear interpolation where the authors' code filters with a wavelet; class labels with a null.

Errors: augmentation of data that are no images, or with a network that cannot be told; sigma_min that is not below sigma_max.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.diffusion._family import ContinuousModel, edm
from gencli.nn.augment import LABELS, geometric
from gencli.samplers._levels import RHO


class Edm(ContinuousModel):
    """A preconditioned denoiser of any level."""

    process = "ve"

    @dataclass(frozen=True)
    class Config:
        sigma_data: float = opt(0.5, "standard deviation of the data σd", low=1e-3)
        p_mean: float = opt(-1.2, "mean of log σ in training")
        p_std: float = opt(1.2, "standard deviation of log σ in training", low=1e-3)
        sigma_min: float = opt(0.002, "least σ of sampling", low=1e-6)
        sigma_max: float = opt(80.0, "greatest σ of sampling", low=1e-3)
        augment: float = opt(0.0, "probability of each augmentation, of which the network is told", low=0, high=1)
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the denoising network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        if config.augment and len(spec.x.shape) != 3:
            raise GencliError(
                f"augment {config.augment} needs images, the data are {spec.x.kind} of shape {spec.x.shape}",
                "leave out --augment",
            )
        if config.sigma_min >= config.sigma_max:
            raise GencliError(
                f"sigma_min {config.sigma_min} is not below sigma_max {config.sigma_max}", "the paper has 0.002 and 80"
            )
        self.sigma_min, self.sigma_max = config.sigma_min, config.sigma_max
        self.formulation = edm(config.sigma_data)
        super().__init__(config, spec)

    def told(self) -> Mapping[str, Field]:
        extra = {"augment": Field("augment", (LABELS,))} if self.config.augment else {}
        return {**self.spec.cond, **extra}

    def sigma_at(self, u: Tensor) -> Tensor:
        low, high = (end ** (1 / RHO) for end in (self.sigma_min, self.sigma_max))
        return (low + u.double() * (high - low)) ** RHO

    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        return (rng.normal((n,)).double() * self.config.p_std + self.config.p_mean).exp()

    def prepared(self, batch: Batch, rng: Rng) -> tuple[Tensor, Batch]:
        data, cond = super().prepared(batch, rng)
        if self.config.augment and self.training:
            data, cond["augment"] = geometric(data, self.config.augment, rng.at("augment"))
        return data, cond
