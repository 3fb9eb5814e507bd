"""Flow Matching for Generative Modeling (Lipman et al., 2022). arXiv:2210.02747

Offers: sample, exact density

    x_τ = τ x_1 + (1 − (1 − σ_min) τ) n,   loss = E ‖v(x_τ, τ) − (x_1 − (1 − σ_min) n)‖²,   dx/dτ = v

for data x_1 and noise n, the conical path. With `coupling = independent` the marginal velocity is that of denoising: any
sampler of denoisers may follow it, D = (1 − σ_min) x_τ + (1 − (1 − σ_min) τ) v.

`coupling = optimal` pairs the noise of a batch with its data by optimal transport (Tong et al., arXiv:2302.00482): straighter
paths, and a velocity that is no longer a posterior mean, so samplers that add noise are refused. Pairs are made within a
class, so that noise does not tell it.

The density is that of the ODE. Default sampler: `euler`, evenly in τ.

Ours: networks are told 1,000 (1 − τ); times may be drawn logit-normally (arXiv:2403.03206); class labels with a null.

Errors: whole numbers as data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Rng, Spec
from gencli.models.diffusion._straight import StraightModel, labels_of, optimal_pairs


class FlowMatching(StraightModel):
    """A velocity from noise to data along straight paths."""

    @dataclass(frozen=True)
    class Config:
        sigma_min: float = opt(0.0, "noise left at the data's end of the path", low=0, high=0.1)
        coupling: Literal["independent", "optimal"] = opt(
            "independent", "noise and data of a pair: drawn independently, or matched within a batch"
        )
        time: Literal["uniform", "logit-normal"] = opt("uniform", "how times are drawn in training")
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the velocity network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec, config.sigma_min)
        self.couples = config.coupling == "optimal"
        self.meaning = "transport" if self.couples else "mean"

    def noise_like(self, data: Tensor, cond: Batch, rng: Rng) -> Tensor:
        noise = super().noise_like(data, cond, rng)
        return noise[optimal_pairs(data, noise, labels_of(cond)).to(noise.device)] if self.couples else noise
