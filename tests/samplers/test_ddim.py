"""DDIM against closed forms, the paper's formulas, and an independent implementation."""

import itertools

import pytest
import torch
from denoisers import SPACINGS, Exact, FromEps, eps_network

from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.diffusion import _schedules as schedules
from gencli.samplers._levels import timesteps
from gencli.samplers.ddim import Ddim

POINTS = Spec(Field("points", (1,)))


class Mixture(Exact):
    """E[x0 | x] for two Gaussians of std 0.1 at ±0.6."""

    def denoise(self, x, sigma, **cond):
        variance = 0.01 + sigma**2
        side = torch.tanh(0.6 * x / variance)
        return (0.01 * x + sigma**2 * 0.6 * side) / variance


def sample(sampler, model, count=16, seed=0, spec=POINTS):
    *_, last = sampler.frames(model, spec, count, Rng.batch(seed, total=count), {})
    return last.x


def test_default_is_50_deterministic_steps_from_the_noisiest_level():
    sampler, model = Ddim.make(), Exact()
    levels = sampler.levels(model)
    assert len(levels) == 51 and levels[0] == model.levels[0] and levels[-1] == 0
    assert sampler.evaluations(model, POINTS) == 50


@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize(("steps", "spacing"), [(1, "trailing"), (10, "quad"), (25, "leading"), (13, "linspace")])
def test_every_step_is_the_papers_formula(eta, steps, spacing):
    table, rng, model = schedules.linear(1000), Rng.batch(0, total=8), FromEps()
    x = rng.at("start").normal((8, 1)).double()
    chosen = timesteps(1000, steps, spacing).flip(0).tolist()
    for i, t in enumerate(chosen):
        now = table[t]
        before = table[chosen[i + 1]] if i + 1 < steps else torch.ones((), dtype=torch.float64)
        eps = eps_network(x, t)
        spread = eta * ((1 - before) / (1 - now)).sqrt() * (1 - now / before).sqrt()
        x0 = (x - (1 - now).sqrt() * eps) / now.sqrt()
        x = before.sqrt() * x0 + (1 - before - spread**2).clamp(min=0).sqrt() * eps
        x = x + spread * rng.at("step", i).normal((8, 1)).double()
    ours = sample(Ddim.make({"steps": steps, "spacing": spacing, "eta": eta}), model, 8)
    assert (ours - x).abs().max() < 1e-9


def test_eta_0_is_an_euler_step_in_sigma():
    model = FromEps()
    sampler = Ddim.make({"steps": 20})
    levels = sampler.levels(model)
    x = model.start(Rng.batch(0, total=16).at("start").normal((16, 1)).double(), levels[0])
    for here, there in itertools.pairwise(levels):
        x = x + (there - here) * eps_network(
            x / (1 + here**2).sqrt(), int((model.levels.flip(0) - here).abs().argmin())
        )
    assert (sample(sampler, model) - x).abs().max() < 1e-9


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 1000])
def test_gaussian_data_land_where_the_closed_form_says_on_every_chain(spacing, steps):
    """D is affine in x, so x − mean is multiplied at each step by (c² + t s) / (c² + t²)."""
    mean, std = 0.3, 0.5
    sampler, model = Ddim.make({"steps": steps, "spacing": spacing}), Exact(mean, std)
    levels = sampler.levels(model)
    start = model.start(Rng.batch(0, total=16).at("start").normal((16, 1)).double(), levels[0])
    factor = torch.prod((std**2 + levels[:-1] * levels[1:]) / (std**2 + levels[:-1] ** 2))
    assert (sample(sampler, model) - (mean + factor * (start - mean))).abs().max() < 1e-10


def test_gaussian_data_get_the_right_mean_and_spread_with_many_steps():
    count = 20_000
    for eta in (0.0, 1.0):
        x = sample(Ddim.make({"steps": 1000, "eta": eta}), Exact(0.3, 0.5), count)
        assert abs(float(x.mean()) - 0.3) < 3 * 0.5 / count**0.5
        assert abs(float(x.std()) / 0.5 - 1) < 0.01 + 3 / (2 * count) ** 0.5


def test_encoding_then_decoding_returns_the_data_and_the_error_falls_linearly_with_steps():
    model = Mixture()
    data = torch.linspace(-0.9, 0.9, 31, dtype=torch.float64)[:, None]
    errors = []
    for steps in (50, 100, 200, 400):
        sampler, rng = Ddim.make({"steps": steps}), Rng.batch(0, total=31)
        levels = sampler.levels(model)
        *_, noise = sampler.run(model.denoise, data, levels.flip(0), rng, rise="step")
        assert (
            0.5 < float((noise.x / (1 + levels[0] ** 2).sqrt()).std()) < 1.5
        )  # as a variance-preserving x_T should be
        *_, back = sampler.run(model.denoise, noise.x, levels, rng)
        errors.append(float((back.x - data).abs().mean()))
    assert errors[-1] < 0.03
    assert all(1.5 < a / b < 2.7 for a, b in itertools.pairwise(errors)), errors


def test_one_step_of_linspace_is_the_noisiest_level():
    assert timesteps(1000, 1, "linspace").tolist() == [999]  # where diffusers takes the cleanest, and samples nothing


def test_the_same_noise_gives_similar_samples_at_different_step_counts():
    few, many = (sample(Ddim.make({"steps": steps}), Mixture(), 200) for steps in (50, 500))
    other = sample(Ddim.make({"steps": 500}), Mixture(), 200, seed=1)
    assert (few - many).abs().mean() < 0.1 < 0.4 < (other - many).abs().mean()
    assert float(((many.abs() - 0.6).abs() < 0.3).float().mean()) > 0.97


def test_encoding_with_noise_is_refused():
    sampler, model = Ddim.make({"eta": 0.5}), Exact()
    with pytest.raises(GencliError, match=r"eta 0\.5"):
        list(
            sampler.run(model.denoise, torch.zeros(1, 1), torch.tensor([1.0, 2.0]), Rng.batch(0, total=1), rise="step")
        )


def test_noise_is_refused_for_an_estimate_that_is_no_mean_but_determinism_is_not():
    model = Exact()
    model.meaning = "transport"
    sample(Ddim.make({"steps": 3}), model)
    with pytest.raises(GencliError, match="transport"):
        sample(Ddim.make({"steps": 3, "eta": 1.0}), model)


@pytest.mark.parametrize("steps", [0, -3, 1001])
def test_steps_out_of_range_are_refused_with_both_numbers(steps):
    with pytest.raises(GencliError, match=rf"{steps}.*1000"):
        sample(Ddim.make({"steps": steps}), Exact())


def test_a_model_of_any_level_is_given_levels_between_its_ends():
    model = Exact(0.0, 0.5)
    model.levels, model.sigma_min, model.sigma_max = None, 0.002, 80.0
    levels = Ddim.make({"steps": 18}).levels(model)
    assert len(levels) == 19 and float(levels[0]) == pytest.approx(80) and levels[-1] == 0 and (levels.diff() < 0).all()


def test_a_sample_does_not_depend_on_its_batch_mates():
    sampler, model = Ddim.make({"steps": 5, "eta": 1.0}), FromEps()
    *_, whole = sampler.frames(model, POINTS, 7, Rng.rows(range(7)), {})
    alone = [list(sampler.frames(model, POINTS, 1, Rng.rows([i]), {}))[-1].x for i in range(7)]
    assert torch.equal(whole.x, torch.cat(alone))


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [2, 10, 33, 50, 400, 1000])
def test_spacings_are_those_of_diffusers(spacing, steps):
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    theirs = scheduler.timesteps.flip(0)
    assert torch.equal(timesteps(1000, steps, spacing), theirs)


@pytest.mark.parametrize(("steps", "spacing"), [(50, "leading"), (20, "trailing"), (1000, "leading")])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("clip", [True, False])
def test_the_whole_loop_equals_diffusers_with_the_same_noise_and_network(steps, spacing, eta, clip):
    pytest.importorskip("diffusers")
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(clip_sample=clip, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod = schedules.linear(1000)  # theirs are float32
    rng = Rng.batch("peer", total=8)
    x = rng.at("start").normal((8, 1)).double()
    for i, t in enumerate(scheduler.timesteps):
        noise = rng.at("step", i).normal((8, 1)).double()
        x = scheduler.step(
            eps_network(x, int(t)), int(t), x, eta=eta, use_clipped_model_output=clip, variance_noise=noise
        ).prev_sample
    spec = Spec(Field("points", (1,), range=(-1.0, 1.0)))
    ours = Ddim.make({"steps": steps, "spacing": spacing, "eta": eta, "clip": clip})
    *_, last = ours.frames(FromEps(), spec, 8, rng, {})
    assert (last.x - x).abs().max() < 1e-6
