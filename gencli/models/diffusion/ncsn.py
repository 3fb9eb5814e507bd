"""Generative Modeling by Estimating Gradients of the Data Distribution (Song & Ermon, 2019). arXiv:1907.05600

Offers: sample

    loss = (1/L) Σ_i ½ σ_i² E ‖s(x + σ_i n, i) + n / σ_i‖²,   σ_i geometric from `sigma_begin` to `sigma_end`

One network gives the score of the data smoothed by each of L levels of noise; it is told the index i of the level, 0 the
largest. Weighted by σ_i², levels cost the same: half the number of dimensions for s = 0. The estimate of x0 is x + σ² s.
Images are in [0, 1], and sampling starts from uniform noise there. Default sampler: `annealed-langevin`.

Paper: ten levels from 1 to 0.01, the network `refinenet` with norms of its own for each level, whose output is the score.
Ours: `output = noise`, where the network predicts σ s, which is of one size at all levels and learnt much sooner (the step
that NCSNv2 takes); class labels with a null; points, which have no range, start from σ_1 n.

Errors: sigma_end that is not below sigma_begin; a network with another number of levels than the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Spec
from gencli.errors import GencliError
from gencli.models.diffusion._family import Formulation, score
from gencli.models.diffusion._ladder import LadderModel, geometric


class Ncsn(LadderModel):
    """A score network that is told which of its levels it is at."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels", "range": "0,1"},)

    @dataclass(frozen=True)
    class Config:
        noise_levels: int = opt(10, "levels of noise L", low=2, high=10_000)
        sigma_begin: float = opt(1.0, "largest σ", low=1e-3)
        sigma_end: float = opt(0.01, "least σ", low=1e-6)
        output: Literal["score", "noise"] = opt("score", "what the network predicts: the score, or σ times it")
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the score network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        if config.sigma_end >= config.sigma_begin:
            raise GencliError(
                f"sigma_end {config.sigma_end} is not below sigma_begin {config.sigma_begin}",
                "the paper has 0.01 and 1",
            )
        tables = (
            getattr(config.net.config, "levels", None) if getattr(config.net.config, "conditional", False) else None
        )
        if tables not in (None, config.noise_levels):
            raise GencliError(
                f"network {config.net.name} has norms for {tables} levels, the model has {config.noise_levels}",
                f"give --net.levels {config.noise_levels}",
            )
        self._levels = geometric(config.sigma_begin, config.sigma_end, config.noise_levels)
        plain = score(torch.ones_like, self.index)
        as_score = Formulation(plain.skip, lambda s: s**2, plain.into, plain.noise)
        self.formulation = as_score if config.output == "score" else plain
        super().__init__(config, spec)

    @property
    def levels(self) -> Tensor:
        return self._levels

    def start(self, noise: Tensor, sigma: Tensor) -> Tensor:
        """Standard normal noise to uniform noise over the data's range, by the normal distribution function."""
        return super().start(noise, sigma) if self.spec.x.range is None else self.uniform_start(noise)
