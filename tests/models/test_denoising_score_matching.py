"""Denoising score matching: the score of smoothed data, and what its loss differs from the explicit one by."""

import math

import torch
from torch import nn

from gencli.core import Field, Rng, Spec, Turn
from gencli.models.diffusion.denoising_score_matching import DenoisingScoreMatching

PLANE = Spec(Field("points", (2,)))
CENTRES = torch.tensor([[-1.0, 0.0], [1.0, 0.5]])
WEIGHTS, SPREAD, SIGMA = torch.tensor([0.3, 0.7]), 0.3, 0.4


def drawn(n, generator):
    which = torch.rand(n, generator=generator) < WEIGHTS[1]
    return CENTRES[which.long()] + SPREAD * torch.randn(n, 2, generator=generator)


def log_smoothed(x):
    """log q_σ: the mixture with the noise's variance added."""
    variance = SPREAD**2 + SIGMA**2
    apart = torch.cdist(x, CENTRES.to(x)).square()
    return torch.logsumexp(WEIGHTS.to(x).log() - apart / (2 * variance), 1) - math.log(2 * math.pi * variance)


def true_score(x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(log_smoothed(x).sum(), x)[0]


def test_trained_on_a_mixture_it_is_the_smoothed_score_in_closed_form():
    torch.manual_seed(0)
    net = {"name": "denoising-mlp", "width": 64, "layers": 2}
    model = DenoisingScoreMatching.make({"sigma": SIGMA, "net": net}, PLANE)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    axis = torch.linspace(-3, 3, 61)
    grid = torch.cartesian_prod(axis, axis)
    density = log_smoothed(grid).exp()
    where = density > 0.01 * density.max()
    truth = true_score(grid)[where]

    def apart():
        with torch.no_grad():
            sigma = torch.tensor(SIGMA)
            made = ((model.denoise(grid, sigma) - grid) / SIGMA**2)[where]
        return float((made - truth).norm() / truth.norm())

    assert apart() > 0.9, "the untrained network is no score"
    for step in range(400):
        turn = Turn("main", step, 400, Rng.batch("train", step, total=512))
        loss = model({"x": drawn(512, generator)}, turn)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        decay.step()
    assert apart() < 0.1


class Any(nn.Module):
    """A score for which nobody trained."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator))
        self.shift = torch.randn(2, generator=generator)

    def forward(self, x, level, **cond):
        return torch.tanh(x @ self.weight + self.shift)


def test_the_loss_differs_from_the_explicit_one_by_the_same_number_for_any_network():
    count = 200_000
    data = drawn(count, torch.Generator().manual_seed(1))
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(2))
    truth = true_score(data + SIGMA * noise)
    gaps, errors = [], []
    for seed in range(3):
        model = DenoisingScoreMatching.make({"sigma": SIGMA}, PLANE)
        model.net = Any(seed)
        sigma = torch.tensor(SIGMA, dtype=torch.float64)
        with torch.no_grad():
            each = model.errors(data, noise, sigma.expand(count), {})
            said = model.predict(data + SIGMA * noise, sigma) / SIGMA  # the network predicts σ s
        explicit = (said - truth).square().sum(1) / 2 * SIGMA**2
        gaps.append(float((each - explicit).mean()))
        errors.append(float(each.mean()))
    assert max(gaps) - min(gaps) < 0.01 < max(errors) - min(errors)


def test_samplers_see_one_level_and_a_start_of_the_datas_scale():
    model = DenoisingScoreMatching.make({"sigma": SIGMA}, PLANE)
    assert model.levels.tolist() == [SIGMA] and model.levels.dtype == torch.float64
    assert torch.allclose(model.start(torch.ones(1, 2), torch.tensor(SIGMA)), torch.full((1, 2), (1 + SIGMA**2) ** 0.5))
