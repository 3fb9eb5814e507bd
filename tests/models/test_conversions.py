"""Noise, data, velocity and score say the same: round trips, and Tweedie's formula on Gaussians."""

import itertools

import pytest
import torch
from torch import nn

from gencli.core import Field, Spec
from gencli.models.diffusion import _family as family
from gencli.models.diffusion.ddpm import Ddpm
from gencli.models.diffusion.denoising_score_matching import DenoisingScoreMatching
from gencli.models.diffusion.edm import Edm
from gencli.models.diffusion.flow_matching import FlowMatching
from gencli.models.diffusion.ncsn import Ncsn
from gencli.models.diffusion.ncsnv2 import Ncsnv2

LINE = Spec(Field("points", (1,)))
NET = {"name": "denoising-mlp", "width": 4, "layers": 1}
MEAN, STD = 0.7, 0.4
WAYS = {
    "eps": family.eps(torch.ones_like),
    "x0": family.x0(torch.ones_like),
    "v": family.v(torch.ones_like),
    "score": family.score(torch.ones_like, torch.ones_like),
    "velocity": family.velocity(torch.ones_like, 1e-3),
    "edm": family.edm(0.5),
}


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def denoised(way, x, sigma, said):
    return family.rows(way.skip(sigma), x) * x + family.rows(way.out(sigma), x) * said


def said_of(way, x, sigma, x0):
    return (x0 - family.rows(way.skip(sigma), x) * x) / family.rows(way.out(sigma), x)


@pytest.mark.parametrize(("one", "other"), itertools.permutations(WAYS, 2))
def test_from_one_prediction_to_another_and_back_is_the_identity(one, other):
    sigma = torch.tensor([1e-2, 0.1, 1.0, 10.0, 80.0], dtype=torch.float64)
    x, said = numbers(5, 7) * (1 + sigma[:, None] ** 2).sqrt(), numbers(5, 7, seed=1)
    middle = said_of(WAYS[other], x, sigma, denoised(WAYS[one], x, sigma, said))
    back = said_of(WAYS[one], x, sigma, denoised(WAYS[other], x, sigma, middle))
    assert (back - said).abs().max() < 1e-6


def test_predictions_are_those_of_the_variance_preserving_formulas():
    """With x_t = α x0 + √(1 − α²) n: n = −√(1 − α²) s_t, v = α n − √(1 − α²) x0; σ s is −n."""
    sigma = torch.tensor([0.05, 1.0, 30.0], dtype=torch.float64)
    x0, n = numbers(3, 9), numbers(3, 9, seed=1)
    alpha = (1 + sigma**2).rsqrt()[:, None]
    x = x0 + sigma[:, None] * n
    kept = {name: said_of(way, x, sigma, x0) for name, way in WAYS.items()}
    assert torch.allclose(kept["eps"], n) and torch.allclose(kept["score"], -n)
    assert torch.allclose(kept["v"], alpha * n - (1 - alpha**2).sqrt() * x0)
    score_t = kept["score"] / sigma[:, None] / alpha  # of x_t = α x
    assert torch.allclose(kept["eps"], -(1 - alpha**2).sqrt() * score_t)
    assert torch.allclose(x0, (alpha * x + (1 - alpha**2) * score_t) / alpha)


class Wiener(nn.Module):
    """What a network must say for data N(MEAN, STD²), in any formulation."""

    def __init__(self, model):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.model = [model]
        self.now = None

    def forward(self, seen, level, **cond):
        x, sigma = self.now
        exact = (STD**2 * x + sigma[:, None] ** 2 * MEAN) / (STD**2 + sigma[:, None] ** 2)
        return said_of(self.model[0].formulation, x, sigma, exact)


MODELS = [
    Ddpm.make({"net": NET, "prediction": "eps"}, LINE),
    Ddpm.make({"net": NET, "prediction": "v"}, LINE),
    Edm.make({"net": NET}, LINE),
    FlowMatching.make({"net": NET}, LINE),
    Ncsn.make({"net": NET}, LINE),
    Ncsn.make({"net": NET, "output": "noise"}, LINE),
    Ncsnv2.make({"net": NET}, LINE),
    DenoisingScoreMatching.make({"net": NET}, LINE),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.public_name())
def test_the_denoiser_of_a_gaussian_gives_its_score(model):
    """Tweedie: (D(x) − x) / σ² = ∇ log N(x; MEAN, STD² + σ²), by autograd."""
    table = model.levels if model.levels is not None else torch.tensor([3.0, 0.3, 0.01], dtype=torch.float64)
    sigma = table[:: max(1, len(table) // 5)]
    x = (MEAN + numbers(len(sigma), 1) * (STD**2 + sigma[:, None] ** 2).sqrt()).requires_grad_()
    log_density = torch.distributions.Normal(MEAN, (STD**2 + sigma[:, None] ** 2).sqrt()).log_prob(x)
    (score,) = torch.autograd.grad(log_density.sum(), x)
    original, model.net = model.net, Wiener(model)
    try:
        model.net.now = (x.detach(), sigma)
        estimate = (model.denoise(x.detach(), sigma) - x.detach()) / sigma[:, None] ** 2
    finally:
        model.net = original
    assert torch.allclose(estimate, score, rtol=1e-6, atol=1e-9)
