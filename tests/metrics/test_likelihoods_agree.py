"""One Gaussian over pairs of grey levels, scored by three families through one metric: they agree, and bounds stay above.

Token by token (exact) and as a density of dequantised data they agree within 0.02 bits; the bound of a chain of denoising
steps with the exact denoiser is above. The probabilities of the pairs are enumerated, so the entropy of the data is known.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import Tensor

from gencli.bundle import Run
from gencli.codecs.dequantise import Dequantise
from gencli.codecs.pixels import Pixels
from gencli.codecs.tokens import Tokens
from gencli.core import Field, Model, Rng, Spec
from gencli.data._base import Split
from gencli.metrics.bpd import Bpd
from gencli.models.diffusion.ddpm import Ddpm

MEAN, STD, CORRELATION, V = 128.0, 24.0, 0.8, 256
T = 100
COVARIANCE = STD**2 * np.array([[1, CORRELATION], [CORRELATION, 1]])
DATA = Spec(Field("image", (1, 1, 2), vocab=V))


@cache
def probabilities() -> Tensor:
    """P `(256, 256)` of each pair of levels: the Gaussian's mass over its bin."""
    edges = np.arange(V + 1) - 0.5
    edges[0], edges[-1] = -1e3, 1e3
    corners = np.stack(np.meshgrid(edges, edges, indexing="ij"), -1)
    below = multivariate_normal([MEAN, MEAN], COVARIANCE).cdf(corners)
    return torch.from_numpy(np.diff(np.diff(below, axis=0), axis=1)).clamp(min=1e-300)


@cache
def pairs(n: int = 2000) -> Split:
    drawn = torch.multinomial(probabilities().flatten(), n, True, generator=torch.Generator().manual_seed(0))
    return Split(torch.stack([drawn // V, drawn % V], 1).view(n, 1, 1, 2).to(torch.uint8).numpy())


class Scored(Model):
    """A likelihood that is given."""

    likelihood = "exact"

    def __init__(self, spec: Spec, log_prob: Any) -> None:
        super().__init__(None, spec)
        self.held = torch.nn.Parameter(torch.zeros(1))
        self._log_prob = log_prob

    def loss(self, batch: Any, turn: Any) -> Any:
        raise AssertionError("not trained")

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        return self._log_prob(x)


def token_by_token(x: Tensor) -> Tensor:
    """log P(k1) + log P(k2 | k1)."""
    first, second = x.flatten(1).long().unbind(1)
    p = probabilities()
    marginal = p.sum(1)
    return marginal[first].log() + (p / marginal[:, None])[first, second].log()


def density(x: Tensor, scale: float = V) -> Tensor:
    """The Gaussian's density of x = (k + u) / V, an affine flow of a standard normal."""
    level = (x.double().flatten(1) * scale - 0.5).numpy()
    return torch.from_numpy(multivariate_normal([MEAN, MEAN], COVARIANCE).logpdf(level)) + 2 * math.log(scale)


class Exact(torch.nn.Module):
    """The noise that E[x0 | x] implies, from the Gaussian's own formula."""

    def __init__(self, model: Ddpm) -> None:
        super().__init__()
        self.held = torch.nn.Parameter(torch.zeros(1))
        self.levels = model.levels.flip(0).double()
        half = (V - 1) / 2
        self.mean, self.covariance = (MEAN - half) / half, torch.from_numpy(COVARIANCE) / half**2

    def forward(self, x: Tensor, level: Tensor, **cond: Tensor) -> Tensor:
        sigma = self.levels[level.long()].view(-1, 1).expand(len(x), 1)
        noisy = x.double().flatten(1) * (1 + sigma**2).sqrt()
        total = self.covariance + torch.diag_embed((sigma**2).expand(-1, 2))
        away = torch.linalg.solve(total, noisy - self.mean)
        return (sigma * away).view_as(x).to(x)


def score(codec: Any, make: Any, n: int = 2000, **settings: Any) -> Any:
    spec = codec.spec(DATA)
    run = Run(make(spec), [codec], spec, DATA)
    return Bpd.make(settings)(run, pairs(n), Rng.batch("bpd", total=1), batch_size=500)


def diffusion(spec: Spec) -> Ddpm:
    model = Ddpm.make(
        {"timesteps": T, "variance": "large", "schedule": "cosine", "net": {"name": "unet", "width": 8, "mults": [1]}},
        spec,
    )
    model.net = Exact(model)
    return model.double()


@cache
def entropy(n: int = 2000) -> float:
    """Mean −log2 P of the drawn pairs, per level."""
    return float(-token_by_token(torch.from_numpy(pairs(n).x)).mean() / (2 * math.log(2)))


def test_the_families_agree_and_bounds_stay_above() -> None:
    exact = score(Tokens.make(), lambda spec: Scored(spec, token_by_token))
    flow = score(Dequantise.make(), lambda spec: Scored(spec, density), draws=4)
    chain = score(Pixels.make(), diffusion, n=400, samples=T - 1)  # every step of the chain
    assert exact.kind == "exact" and flow.kind == chain.kind == "bound"
    assert exact.value == pytest.approx(entropy(), abs=1e-9)
    assert flow.note == "dequantised bound, 4 draws" and chain.note.startswith("ELBO")
    assert entropy() - 0.002 < flow.value < entropy() + 0.02
    assert entropy(chain.n) < chain.value < entropy(chain.n) + 1  # few steps, and a decoder that is not the posterior


def test_a_forgotten_constant_is_far_off() -> None:
    """The density without its Jacobian, as of data in [0, 256): 8 bits a level less."""
    wrong = score(Dequantise.make(), lambda spec: Scored(spec, lambda x: density(x) - 2 * math.log(V)))
    assert wrong.value == pytest.approx(entropy() + 8, abs=0.02)


def test_the_dequantised_density_bounds_the_probability_of_every_pair() -> None:
    """E_u log p(k + u) ≤ log P(k), on a Gaussian narrow enough for a gap: equality only for a density flat over the bin."""
    narrow = multivariate_normal([0.0], [[0.3**2]])
    u = (torch.arange(2000) + 0.5) / 2000
    for level in range(-2, 3):
        inside = np.asarray(level - 0.5 + u)
        mean_log, mass = narrow.logpdf(inside).mean(), np.diff(narrow.cdf([level - 0.5, level + 0.5]))[0]
        assert mean_log <= math.log(mass) - 0.05
