"""A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011).

Offers: sample

    loss = σ² E ½ ‖s(x + σ n) + n / σ‖²,   least for s(x) = ∇ log q_σ(x),   q_σ = data + σ n

at one level σ: no trace of a Jacobian, and no normalising constant. It differs from the explicit ½ σ² E ‖s − ∇ log q_σ‖² by a
number that does not depend on s. The estimate of x0 is x + σ² s, the posterior mean at that level (Tweedie).

Default sampler: `langevin`, whose samples are those of q_σ; it starts from noise of the data's scale, and finds the modes that
lie near, not their weights: one level does not lead from one mode to another (which is what NCSN is about).

Ours: the factor σ², which makes a score of zero cost half the number of dimensions; the network predicts σ s; class labels with
a null.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Spec
from gencli.models.diffusion._family import score
from gencli.models.diffusion._ladder import LadderModel, geometric


class DenoisingScoreMatching(LadderModel):
    """The score of data with noise of one level."""

    process = "vp"

    @dataclass(frozen=True)
    class Config:
        sigma: float = opt(0.2, "standard deviation of the noise", low=1e-6)
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "denoising-mlp", "the score network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        self.formulation = score(torch.ones_like, torch.zeros_like)
        super().__init__(config, spec)

    @property
    def levels(self) -> Tensor:
        return geometric(self.config.sigma, self.config.sigma, 1)
