"""Nested diffusion: what one step of either chain is, what it costs, and that every estimate on the way is a sample."""

import pytest
import torch
from denoisers import POINTS, AnyLevel, Exact, FromEps, Mixed, sampled

from gencli.core import Rng
from gencli.errors import GencliError
from gencli.samplers.ancestral import Ancestral
from gencli.samplers.ddim import Ddim
from gencli.samplers.nested_diffusion import NestedDiffusion


class Narrow(Mixed):
    """Two Gaussians twelve standard deviations apart."""

    stds = torch.full((2,), 0.1, dtype=torch.float64)


class Counting(FromEps):
    """Remembers the levels that it was asked at."""

    def __init__(self, total=1000):
        super().__init__(total=total)
        self.asked = []

    def denoise(self, x, sigma, **cond):
        self.asked.append(float(sigma))
        return super().denoise(x, sigma)


def estimates(sampler, model, count=2000):
    """What is shown after each step, without the last."""
    return [frame.x for frame in sampler.frames(model, POINTS, count, Rng.batch(0, total=count), {})][:-1]


def on_a_mode(x):
    return float(((x.abs() - 0.6).abs() < 0.3).double().mean())


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_one_inner_step_is_ddim_bit_for_bit(eta, steps):
    nested = NestedDiffusion.make({"steps": steps, "inner": 1, "eta": eta})
    assert torch.equal(sampled(nested, FromEps()), sampled(Ddim.make({"steps": steps, "eta": eta}), FromEps()))


def test_one_inner_step_with_eta_1_is_ancestral_sampling():
    nested = NestedDiffusion.make({"steps": 50, "inner": 1, "eta": 1.0})
    plain = Ancestral.make({"steps": 50, "variance": "small"})
    assert torch.allclose(sampled(nested, FromEps()), sampled(plain, FromEps()), atol=1e-12)


def test_one_outer_step_is_the_inner_sampler():
    nested = NestedDiffusion.make({"steps": 1, "inner": 20, "inner_eta": 0.0})
    assert torch.allclose(sampled(nested, FromEps()), sampled(Ddim.make({"steps": 20}), FromEps()), atol=1e-12)


def test_two_steps_of_each_chain_are_the_papers_algorithm():
    """Written out: x̂₀ by two steps from σ₁, one outer step, x̂₀ by two steps from σ₂; the last is the sample."""
    model, rng = FromEps(), Rng.batch(0, total=16)
    table = model.levels
    t, s = table[0], table[500]

    def estimate(x, level, middle, noise):
        x0 = model.denoise(x, level)
        deviation = 0.85 * middle / level * (level**2 - middle**2).sqrt()
        mean = x0 + (middle**2 - deviation**2).sqrt() * (x - x0) / level
        return model.denoise(mean + deviation * noise.at("inner", 0).normal(x.shape).double(), middle)

    x = model.start(rng.at("start").normal((16, 1)).double(), t)
    x0 = estimate(x, t, table[500], rng.at("step", 0))
    x = x0 + s * (x - x0) / t
    wanted = estimate(x, s, table[750], rng.at("step", 1))
    assert torch.allclose(
        sampled(NestedDiffusion.make({"steps": 2, "inner": 2, "inner_eta": 0.85}), model), wanted, atol=1e-12
    )


@pytest.mark.parametrize(
    ("steps", "inner", "settings"),
    [(25, 4, {}), (10, 10, {"noise_schedule": "karras"}), (3, 30, {"noise_schedule": "logsnr"}), (5, 6, {"eta": 1.0})],
)
def test_it_costs_outer_times_inner_evaluations_each_run_from_where_the_outer_chain_is(steps, inner, settings):
    model = Counting()
    sampler = NestedDiffusion.make({"steps": steps, "inner": inner, **settings})
    sampled(sampler, model)
    levels = sampler.levels(model)
    least = sum(min(inner, int((model.levels <= level).sum())) for level in levels[:-1])
    assert len(model.asked) == least == sampler.evaluations(model, POINTS)
    if not settings.get("noise_schedule"):
        assert least == steps * inner
    begun = [model.asked[i] for i in range(0, steps * inner, inner)] if least == steps * inner else []
    assert begun in ([], levels[:-1].tolist()), "each inner chain begins where the outer one is"
    assert all(level in model.levels for level in model.asked), "only trained levels"


def test_where_fewer_levels_are_left_than_inner_steps_each_is_visited_once():
    model = Counting(total=5)
    sampled(NestedDiffusion.make({"steps": 5, "inner": 3}), model)
    assert len(model.asked) == 3 + 3 + 3 + 2 + 1
    assert model.asked[-3:] == [float(model.levels[i]) for i in (3, 4, 4)]


@pytest.mark.parametrize("model", [Exact(0.3, 0.5), AnyLevel(0.3, 0.5)], ids=["table", "any level"])
def test_the_law_is_the_models_own_where_the_inner_chain_draws_as_the_posterior_does(model):
    def spread(eta):
        x = sampled(NestedDiffusion.make({"steps": 20, "inner": 50, "inner_eta": eta}), model, 4000)
        assert abs(float(x.mean()) - 0.3) < 0.03
        return float(x.std())

    assert spread(1.0) == pytest.approx(0.5, rel=0.04)
    assert spread(0.85) > 0.53 and spread(0.0) > 0.8, "an inner chain that keeps x's noise"


def test_every_estimate_on_the_way_lies_on_a_mode_where_the_plain_chains_lie_between():
    nested = estimates(NestedDiffusion.make({"steps": 10, "inner": 25}), Narrow())
    plain = estimates(Ddim.make({"steps": 10}), Narrow())
    assert min(on_a_mode(x) for x in nested) > 0.97
    assert [on_a_mode(x) for x in plain[:3]] == [0, 0, 0] and on_a_mode(plain[5]) < 0.6


def test_the_samples_have_the_weights_of_the_modes():
    x = sampled(NestedDiffusion.make({"steps": 10, "inner": 25}), Narrow(), 4000)
    assert abs(float((x > 0).double().mean()) - 0.7) < 0.04 and on_a_mode(x) > 0.97


def test_the_trajectory_shows_the_estimates():
    sampler, model = NestedDiffusion.make({"steps": 4, "inner": 5}), Exact(0.2, 0.5)
    frames = list(sampler.trajectory(model, POINTS, 8, Rng.batch(0, total=8), {}))
    assert len(frames) == 4 and all(not torch.allclose(f.x, f.info["noisy"]) for f in frames[:-1])


def test_a_denoiser_whose_estimate_is_no_mean_is_refused():
    model = Exact()
    model.meaning = "transport"
    with pytest.raises(GencliError, match=r"NestedDiffusion is wrong for .*transport"):
        sampled(NestedDiffusion.make(), model)


@pytest.mark.parametrize("steps", [0, 1001])
def test_steps_out_of_range_are_refused_with_both_numbers(steps):
    with pytest.raises(GencliError, match=rf"{steps}.*1000"):
        sampled(NestedDiffusion.make({"steps": steps}), Exact())
