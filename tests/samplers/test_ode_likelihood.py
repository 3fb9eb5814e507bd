"""log p(x) by the probability-flow ODE against closed-form densities and torchdiffeq."""

import math

import pytest
import torch

from gencli.core import Rng
from gencli.samplers._ode import log_prob

LOW, HIGH, DIM = 0.01, 1e4, 4  # so high that the data's mean is nothing beside the start


class Correlated:
    """Gaussian data whose values depend on one another, so that the Jacobian is no multiple of the identity."""

    def __init__(self):
        factor = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.5
        self.mean, self.cov = (
            torch.linspace(-0.5, 0.5, DIM, dtype=torch.float64),
            factor @ factor.T + 0.05 * torch.eye(DIM),
        )

    def denoise(self, x, sigma):
        noise = sigma.reshape(-1, 1, 1) ** 2 * torch.eye(DIM, dtype=torch.float64)
        return self.mean + (self.cov @ torch.linalg.solve(self.cov + noise, (x - self.mean)[..., None]))[..., 0]

    def log_density(self, x):
        cov = self.cov + LOW**2 * torch.eye(DIM)
        return torch.distributions.MultivariateNormal(self.mean, cov).log_prob(x)

    def draw(self, n):
        z = torch.randn(n, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return self.mean + z @ torch.linalg.cholesky(self.cov).T


def two_modes(x, sigma):
    """E[x0 | x] for two Gaussians of std 0.1 at ±0.6, in one dimension."""
    sigma = sigma.reshape(-1, 1)
    variance = 0.01 + sigma**2
    return (0.01 * x + sigma**2 * 0.6 * torch.tanh(0.6 * x / variance)) / variance


@torch.no_grad()
def test_exact_divergence_gives_the_closed_form_within_a_thousandth_of_a_nat():
    data = Correlated()
    x = data.draw(20)
    nats, evaluations = log_prob(data.denoise, x, LOW, HIGH, HIGH, Rng.rows(range(20)), "exact")
    assert nats.shape == evaluations.shape == (20,) and not nats.requires_grad
    assert (nats - data.log_density(x)).abs().max() < 1e-3


def test_the_start_of_unit_variance_data_is_wider_than_the_noise():
    """N(0, I) under the start √(1 + σ²) is exact at any σ_max; the noise alone would be off."""
    x, rng = torch.tensor([[0.3, -1.2], [2.0, 0.1]], dtype=torch.float64), Rng.rows(range(2))
    expected = torch.distributions.Normal(0, math.sqrt(1 + LOW**2)).log_prob(x).sum(1)

    def denoise(x, sigma):
        return x / (1 + sigma.reshape(-1, 1) ** 2)

    nats, _ = log_prob(denoise, x, LOW, 3.0, math.sqrt(10.0), rng, "exact")
    assert (nats - expected).abs().max() < 1e-4
    narrow, _ = log_prob(denoise, x, LOW, 3.0, 3.0, rng, "exact")
    assert (narrow - expected).abs().min() > 0.01


def test_a_mixture_has_its_density_between_the_modes_too():
    x = torch.linspace(-1, 1, 21, dtype=torch.float64)[:, None]
    variance = 0.01 + LOW**2
    modes = torch.distributions.Normal(torch.tensor([-0.6, 0.6], dtype=torch.float64), math.sqrt(variance))
    expected = modes.log_prob(x).logsumexp(1) - math.log(2)
    nats, _ = log_prob(two_modes, x, LOW, HIGH, HIGH, Rng.rows(range(21)), "exact", rtol=1e-6, atol=1e-6)
    assert (nats - expected).abs().max() < 1e-3


def test_hutchinsons_estimate_is_unbiased_and_its_error_falls_with_probes():
    data, count = Correlated(), 1000
    x = data.draw(1).expand(count, DIM)
    exact, _ = log_prob(data.denoise, x[:1], LOW, HIGH, HIGH, Rng.rows([0]), "exact")
    spreads = []
    for probes in (1, 4):
        nats, _ = log_prob(data.denoise, x, LOW, HIGH, HIGH, Rng.rows(range(count)), probes=probes, rtol=1e-4)
        spreads.append(float(nats.std()))
        error = abs(float(nats.mean() - exact))
        assert error < 3 * spreads[-1] / math.sqrt(count) + 1e-3
    assert spreads[0] > 0.1, "without off-diagonal terms nothing would be tested"
    assert 1.7 < spreads[0] / spreads[1] < 2.3


def test_bits_of_a_data_set_are_those_of_the_closed_form_within_two_hundredths():
    data, count = Correlated(), 1000
    x = data.draw(count)
    nats, _ = log_prob(data.denoise, x, LOW, HIGH, HIGH, Rng.rows(range(count)), probes=4, rtol=1e-4)
    assert abs(float((nats - data.log_density(x)).mean())) / (DIM * math.log(2)) < 0.02


def test_it_is_what_torchdiffeq_makes_of_each_item_alone():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    x = torch.tensor([[0.4], [-0.9]], dtype=torch.float64)
    nats, calls = log_prob(two_modes, x, LOW, HIGH, HIGH, Rng.rows(range(2)), "exact", rtol=1e-6, atol=1e-7)
    for i in range(2):

        def joint(u, state):
            here = state[:1].reshape(1, 1).detach().requires_grad_(True)
            with torch.enable_grad():
                slope = here - two_modes(here, u.exp())
                (divergence,) = torch.autograd.grad(slope.sum(), here)
            return torch.cat([slope.detach()[0], divergence[0]])

        begin = torch.cat([x[i], torch.zeros(1, dtype=torch.float64)])
        ends = torch.tensor([LOW, HIGH], dtype=torch.float64).log()
        end = torchdiffeq.odeint(joint, begin, ends, rtol=1e-6, atol=1e-7)[-1]
        theirs = torch.distributions.Normal(0, HIGH).log_prob(end[0]) + end[1]
        assert abs(float(nats[i] - theirs)) < 1e-4
    assert (calls > 50).all()


def test_an_item_does_not_depend_on_the_others_and_its_evaluations_are_counted():
    data, seen = Correlated(), []
    x = data.draw(5) * torch.tensor([0.1, 1, 1, 3, 20], dtype=torch.float64)[:, None]

    def counted(x, sigma):
        seen.append(len(x))
        return data.denoise(x, sigma)

    whole, evaluations = log_prob(data.denoise, x, LOW, HIGH, HIGH, Rng.rows(range(5)))
    for i in range(5):
        seen.clear()
        alone, calls = log_prob(counted, x[i : i + 1], LOW, HIGH, HIGH, Rng.rows([i]))
        assert abs(float(alone[0] - whole[i])) < 1e-9 * abs(float(whole[i]))
        assert len(seen) == int(calls[0]) == int(evaluations[i])
