"""Improved Techniques for Training Score-Based Generative Models (Song & Ermon, 2020). arXiv:2006.09011

Offers: sample

    s(x, σ) = f(x) / σ,   loss = (1/L) Σ_i ½ E ‖f(x + σ_i n) + n‖²

NCSN with the paper's five techniques. (1) σ_1 is the largest distance between two training items, so that every item can be
reached from every other. (2) The levels fall by the ratio γ for which the shells of neighbouring levels overlap by half:
Φ(√(2D) (γ − 1) + 3γ) − Φ(√(2D) (γ − 1) − 3γ) = ½, D the dimension. (3) The network f is not told the level, only divided by it.
(4) Langevin dynamics takes `inner` steps at a level, x ← x + α s + √(2α) z with α = ε σ_i² / σ_L², and the ε for which the
variance that it has at the next level, from γ² σ², is nearest to σ²:

    s_T² / σ² = (1 − η)^2T (γ² − 2 / (2 − η)) + 2 / (2 − η),   η = ε / σ_L²

(5) Weights are averaged (the recipes' `ema_decay`) and the last step denoises. `langevin` is what (4) gives for the model's
levels, in the units of the sampler.

Images are in [0, 1]. Default sampler: `annealed-langevin`. In few dimensions (3) fails: a point in the plane does not tell how
much noise it has, as the norm of an image does. Use `ncsn` there.

Ours: σ_1 is measured on up to 2,000 items; at least ten levels, since (2) allows any ratio below five dimensions; sampling
starts from σ_1 n, which is what the first level's samples are, where the authors' code starts from uniform noise; class labels
with a null.

Errors: sigma_end that is not below sigma_begin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Rng, Spec
from gencli.errors import GencliError
from gencli.models.diffusion._family import score
from gencli.models.diffusion._ladder import LadderModel, geometric

ITEMS = 2000
FEWEST = 10


class Ncsnv2(LadderModel):
    """A score network that is divided by the level and knows no more of it."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels", "range": "0,1"},)

    @dataclass(frozen=True)
    class Config:
        sigma_begin: float = opt(0.0, "largest σ; 0 = the largest distance between training items", low=0)
        sigma_end: float = opt(0.01, "least σ", low=1e-6)
        noise_levels: int = opt(
            0, "levels of noise L; 0 = as many as the paper's criterion asks for", low=0, high=10_000
        )
        inner: int = opt(5, "Langevin steps at each level, for which the step size is chosen", low=1)
        label_dropout: float = opt(0.1, "share of labels replaced by the null label in training", low=0, high=1)
        net: Part = part("networks", "unet", "the score network", role="denoise")

    def __init__(self, config: Config, spec: Spec) -> None:
        if 0 < config.sigma_begin <= config.sigma_end:
            raise GencliError(
                f"sigma_end {config.sigma_end} is not below sigma_begin {config.sigma_begin}",
                "the paper has 0.01 and 50",
            )
        self.formulation = score(torch.ones_like, torch.zeros_like)
        super().__init__(config, spec)
        low, high = spec.x.range or (-2.0, 2.0)  # a guess, until there are data
        self.widest: Tensor
        self.register_buffer("widest", torch.tensor(config.sigma_begin or (high - low) * spec.x.size**0.5 / 2))

    @property
    def levels(self) -> Tensor:
        config = self.config
        begin = config.sigma_begin or float(self.widest)
        return _ladder(begin, config.sigma_end, config.noise_levels or count(begin, config.sigma_end, self.spec.x.size))

    @property
    def langevin(self) -> dict[str, float]:
        """Settings for `annealed-langevin`, whose x ← x + α/2 s + √α z with α = step_size σ² makes step_size 2ε / σ_L²."""
        levels, inner = self.levels, self.config.inner
        epsilon = step_size(float(levels[0] / levels[1]), inner, float(levels[-1]))
        return {"inner": inner, "step_size": 2 * epsilon / float(levels[-1]) ** 2}

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """Measure the largest distance between training items."""
        wanted, items = min(count, ITEMS), torch.empty(0, self.spec.x.size, dtype=torch.float64)
        while len(items) < wanted:
            items = torch.cat([items, next(data)["x"].flatten(1).cpu().double()])
        self.widest.fill_(max(float(torch.cdist(items, items).max()), 2 * self.config.sigma_end))


@lru_cache(maxsize=8)
def _ladder(begin: float, end: float, levels: int) -> Tensor:
    return geometric(begin, end, levels)


def overlap(ratio: float, dim: int) -> float:
    """Technique 2's value: how much of one level's shell lies within three sigmas of the next level's, about 0.5 is right."""
    apart = math.sqrt(2 * dim) * (ratio - 1)
    return _normal_cdf(apart + 3 * ratio) - _normal_cdf(apart - 3 * ratio)


def _normal_cdf(z: float) -> float:
    return 0.5 * math.erfc(-z / math.sqrt(2))


def count(begin: float, end: float, dim: int) -> int:
    """The least number of levels whose ratio overlaps by half: √(2D) (γ − 1) = 3γ, the other tail being 1e-9."""
    root = math.sqrt(2 * dim)
    if root <= 3:
        return FEWEST
    return max(FEWEST, 1 + math.ceil(math.log(begin / end) / math.log(root / (root - 3))))


def variance_ratio(eta: Tensor, ratio: float, inner: int) -> Tensor:
    """Technique 4's s_T² / σ²: what `inner` Langevin steps of size η σ² make of noise of variance γ² σ²."""
    at_rest = 2 / (2 - eta)
    return (1 - eta) ** (2 * inner) * (ratio**2 - at_rest) + at_rest


@lru_cache(maxsize=64)
def step_size(ratio: float, inner: int, sigma_end: float) -> float:
    """The ε whose variance ratio is nearest to 1: the least there is, as it is above 1 for every step below 1."""
    eta = torch.logspace(-6, 0, 60_001, dtype=torch.float64)[:-1]
    return float(eta[variance_ratio(eta, ratio, inner).argmin()]) * sigma_end**2
