"""Flow matching: its paths, its objective, optimal pairs, and its link with denoising."""

import itertools

import pytest
import torch
from diffused import CIFAR, MLP, NET, POINTS, SPEC, Told, counted

from gencli.core import Field, Rng, Spec, Turn
from gencli.models.diffusion._straight import optimal_pairs
from gencli.models.diffusion.flow_matching import FlowMatching
from gencli.samplers._likelihood import flow_log_prob
from gencli.samplers.ddim import Ddim
from gencli.samplers.euler import Euler


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def told(answer, **settings):
    """A model of points whose network gives `answer(x_τ, 1 − τ)`, the velocity from data to noise."""
    model = FlowMatching.make({"net": MLP, **settings}, POINTS)
    model.net = Told(lambda x, level, **cond: answer(x, level / 1000), torch.float64)
    return model


def test_parameter_count_is_the_official_one():
    assert counted("flow-matching-cifar10", CIFAR)[0] == 35_746_307


@pytest.mark.parametrize("least", [0.0, 0.05])
def test_along_a_path_the_velocity_is_constant_and_the_ends_are_noise_and_data(least):
    model = told(lambda x, left: x * 0, sigma_min=least)
    data, noise = normal(2, 5, 2)
    for tau in (0.001001, 0.2, 0.7, 1.0 if least else 0.999):
        spread = 1 - (1 - least) * tau
        sigma = torch.tensor(spread / tau, dtype=torch.float64)
        point = tau * data + spread * noise
        model.denoise(point / tau, sigma)
        seen, level, _ = model.net.asked
        assert torch.allclose(seen, point, rtol=1e-9) and torch.allclose(level, torch.tensor(1000 * (1 - tau)).double())
        assert torch.allclose(model.formulation.target(data, noise, sigma), (1 - least) * noise - data, rtol=1e-9)


def test_the_marginal_velocity_of_gaussian_data_is_linked_with_the_score():
    """v = x / τ + ((1 − τ) / τ) score, with the score of N(0, τ² + (1 − τ)²)."""
    x = normal(7, 2)
    for tau in (0.1, 0.5, 0.9):
        variance = tau**2 + (1 - tau) ** 2
        marginal = ((2 * tau - 1) / variance) * x  # E[x_1 − n | x_τ]
        linked = x / tau + (1 - tau) / tau * (-x / variance)
        assert (marginal - linked).abs().max() < 1e-13
        model = told(lambda x, left, v=marginal: -v)
        sigma = torch.tensor((1 - tau) / tau, dtype=torch.float64)
        mean = x / tau / (1 + sigma**2)  # E[x_0 | x] for unit Gaussian data
        assert (model.denoise(x / tau, sigma) - mean).abs().max() < 1e-9
        assert (model.velocity(x, torch.tensor(tau)) - marginal).abs().max() < 1e-9


POINTS_OF = torch.tensor([[1.0, 0.2], [-0.7, 0.9], [0.1, -1.1]], dtype=torch.float64)


def marginal_velocity(x, tau):
    """Σ w_i(x) (x_i − x) / (1 − τ) for data that are three points."""
    apart = ((x[:, None] - tau * POINTS_OF) ** 2).sum(-1) / (2 * (1 - tau) ** 2)
    weights = (-apart).softmax(1)
    return (weights[..., None] * (POINTS_OF - x[:, None])).sum(1) / (1 - tau)


def density(x, tau):
    apart = ((x[:, None] - tau * POINTS_OF) ** 2).sum(-1) / (2 * (1 - tau) ** 2)
    return (-apart).exp().mean(1) / (2 * torch.pi * (1 - tau) ** 2)


def test_the_marginal_velocity_of_a_finite_data_set_obeys_the_continuity_equation():
    x, h = normal(20, 2), 1e-5
    for tau in (0.2, 0.5, 0.7):
        change = (density(x, tau + h) - density(x, tau - h)) / (2 * h)
        flux = 0.0
        for axis in range(2):
            step = torch.zeros(2, dtype=torch.float64)
            step[axis] = h
            there, here = x + step, x - step
            flux = flux + (
                density(there, tau) * marginal_velocity(there, tau)[:, axis]
                - density(here, tau) * marginal_velocity(here, tau)[:, axis]
            ) / (2 * h)
        assert ((change + flux).abs() / density(x, tau).max()).max() < 1e-3


def test_euler_with_the_marginal_velocity_of_a_finite_data_set_returns_its_points():
    model = told(lambda x, left: -marginal_velocity(x, float(1 - left[0])))
    *_, last = Euler.make({"steps": 200}).frames(model, POINTS, 64, Rng.batch(0, total=64), {})
    apart = torch.cdist(last.x, POINTS_OF).min(1)
    assert apart.values.max() < 1e-3 and len(apart.indices.unique()) == 3


def test_the_density_of_gaussian_data_is_the_closed_form():
    model = told(lambda x, left: -(2 * (1 - left[:, None]) - 1) / ((1 - left[:, None]) ** 2 + left[:, None] ** 2) * x)
    x = normal(5, 2, seed=3)
    exact = torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)
    made, _ = flow_log_prob(model, x, Rng.rows(range(5)), divergence="exact")
    assert (made - exact).abs().max() < 0.01


def test_the_conditional_objective_has_the_gradient_of_the_marginal_one_and_differs_by_a_constant():
    """A linear field of three points: the expectation over pairs against that over their marginal velocity."""
    rng, count, tau = Rng.batch("cfm", total=200_000), 200_000, 0.6
    data = POINTS_OF[rng.at("which").integers((count,), 3)]
    noise = rng.at("noise").normal((count, 2)).double()
    x = tau * data + (1 - tau) * noise
    fm, gaps = [], []
    for scale in (-0.8, 0.4, 1.5):
        a = torch.full((2,), scale, dtype=torch.float64, requires_grad=True)
        conditional = (a * x - (data - noise)).square().sum(1)
        marginal = (a * x - marginal_velocity(x, tau)).square().sum(1)
        gaps.append(float((conditional - marginal).mean().detach()))
        each = 2 * x * ((a.detach() * x - (data - noise)) - (a.detach() * x - marginal_velocity(x, tau)))
        error = each.std(0) / count**0.5
        fm.append((each.mean(0).abs() < 3.5 * error).all())
    assert all(fm)
    assert max(gaps) - min(gaps) < 0.03 and min(gaps) > 0.5


def test_points_velocities_and_estimates_are_those_of_the_flow_matching_package():
    paths = pytest.importorskip("flow_matching.path")
    path = paths.CondOTProbPath()
    data, noise = normal(6, 2), normal(6, 2, seed=1)
    t = torch.tensor([0.01, 0.2, 0.4, 0.6, 0.9, 0.99], dtype=torch.float64)
    theirs = path.sample(x_0=noise, x_1=data, t=t)
    model, sigma = told(lambda x, left: x * 0), (1 - t) / t
    point = data + sigma[:, None] * noise
    model.denoise(point, sigma)
    assert torch.allclose(model.net.asked[0], theirs.x_t, rtol=1e-9)
    assert torch.allclose(-model.formulation.target(data, noise, sigma), theirs.dx_t, rtol=1e-9)
    field = normal(6, 2, seed=2)
    moved = told(lambda x, left: -field)
    estimate = path.velocity_to_target(velocity=field, x_t=theirs.x_t, t=t[:, None])
    assert torch.allclose(moved.denoise(point, sigma), estimate, rtol=1e-9)


# -------------------------------------------------------------------------------------------------------- optimal pairs


def test_optimal_pairs_are_a_permutation_that_costs_no_more():
    data, noise = normal(32, 2), normal(32, 2, seed=1)
    chosen = optimal_pairs(data, noise)
    assert sorted(chosen.tolist()) == list(range(32))
    assert (data - noise[chosen]).square().sum() < 0.8 * (data - noise).square().sum()
    assert all(
        (data[[i, j]] - noise[chosen[[i, j]]]).square().sum()
        <= (data[[i, j]] - noise[chosen[[j, i]]]).square().sum() + 1e-9
        for i, j in itertools.combinations(range(32), 2)
    ), "no two could gain by an exchange"


def test_noise_is_exchanged_within_a_class_only():
    """Two classes far apart: pairs across them would make the noise tell the class."""
    label = torch.arange(64) % 2
    data, noise = normal(64, 2) * 0.1 + (label[:, None] * 6 - 3), normal(64, 2, seed=1)
    free, kept = optimal_pairs(data, noise), optimal_pairs(data, noise, label)
    assert torch.equal(label[kept], label) and not torch.equal(label[free], label)
    side = [float(noise[pairs][label == 1, 0].mean() - noise[pairs][label == 0, 0].mean()) for pairs in (free, kept)]
    assert side[0] > 1.0 > 0.5 > abs(side[1])


def test_optimal_coupling_is_a_transport_that_refuses_samplers_which_add_noise():
    from gencli.errors import GencliError

    model = FlowMatching.make({"net": NET, "coupling": "optimal"}, SPEC)
    assert model.couples and model.meaning == "transport"
    with pytest.raises(GencliError, match="'transport'"):
        Ddim.make({"eta": 1.0}).check(model)
    Ddim.make().check(model)
    batch = {"x": torch.rand(16, 1, 4, 4) * 2 - 1, "label": torch.arange(16) % 3}
    noise = model.noise_like(batch["x"], batch, Rng.batch(0, total=16))
    plain = Rng.batch(0, total=16).normal((16, 1, 4, 4))
    assert torch.equal(noise.flatten(1).sort(0).values, plain.flatten(1).sort(0).values)
    assert not torch.equal(noise, plain)
    assert torch.isfinite(model(batch, Turn("main", 0, 1, Rng.batch(0, total=16)))["loss"])


# ------------------------------------------------------------------------------------------------- link with diffusion


def test_a_diffusion_model_followed_as_a_velocity_by_euler_is_ddim():
    """v = x_0-estimate turned into a velocity, integrated in τ at the times whose σ DDIM visits."""
    from denoisers import FromEps

    model, sampler = FromEps(), Ddim.make({"steps": 20})
    levels = sampler.levels(model)
    start = model.start(normal(8, 1), levels[0])
    x, tau = start / (1 + levels[0]), 1 / (1 + levels)
    for here, there, sigma in zip(tau, tau[1:], levels, strict=False):
        estimate = model.denoise(x / here, sigma)
        x = x + (there - here) * (estimate - x) / (1 - here)  # v = E[x_1 − n | x_τ]
    *_, last = sampler.run(model.denoise, start, levels, Rng.batch(0, total=8))
    assert (x - last.x).abs().max() < 1e-9


def test_velocity_score_and_back_is_the_identity():
    """(α, s) of the three processes: v = (α′/α) x + (s² α′/α − s s′) score."""
    x, score, t = normal(9, 2), normal(9, 2, seed=1), 0.37
    half = 0.5 * (0.1 * t + 9.95 * t**2)
    beta, alpha = 0.1 + 19.9 * t, float(torch.tensor(-half).exp())
    spread = (1 - alpha**2) ** 0.5
    processes = {
        "vp": (alpha, -beta / 2 * alpha, spread, beta / 2 * alpha**2 / spread),
        "ve": (1.0, 0.0, 0.01 * 5000**t, 0.01 * 5000**t * 8.517193191416238),
        "linear": (1 - t, -1.0, t, 1.0),
    }
    for a, a_slope, s, s_slope in processes.values():
        gain = s**2 * a_slope / a - s * s_slope
        v = a_slope / a * x + gain * score
        assert ((v - a_slope / a * x) / gain - score).abs().max() < 1e-6
    sigma = torch.tensor(t / (1 - t), dtype=torch.float64)
    data = x + sigma**2 * score  # Tweedie, in x = x_0 + σ n
    model = told(lambda inner, left: (x - data) / sigma - data)  # n − x_0
    assert (model.denoise(x, sigma) - data).abs().max() < 1e-9


def test_conditions_reach_the_network():
    model = FlowMatching.make({"net": NET}, Spec(SPEC.x, {"label": Field("label", (), vocab=3)}))
    assert model.net.label.num_embeddings == 4
