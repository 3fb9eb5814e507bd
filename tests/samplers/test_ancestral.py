"""Ancestral sampling against closed forms, the paper's formulas, and an independent implementation."""

import pytest
import torch
from denoisers import SPACINGS, Exact, FromEps, eps_network

from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.diffusion import _schedules as schedules
from gencli.samplers._levels import spaced, timesteps
from gencli.samplers.ancestral import Ancestral
from gencli.samplers.ddim import Ddim


def sample(sampler, model, count, seed=0, spec=None):
    *_, last = sampler.frames(model, spec or Spec(Field("points", (1,))), count, Rng.batch(seed, total=count), {})
    return last.x


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50, 333])
def test_unit_gaussian_data_get_the_right_spread_on_every_chain_with_large_variance(spacing, steps):
    """β is exactly p(x_s | x_t)'s variance here, so only the last mean, which has no noise, is narrower: by √ᾱ."""
    model, count = Exact(std=1.0), 20_000
    sampler = Ancestral.make({"steps": steps, "spacing": spacing, "variance": "large"})
    x = sample(sampler, model, count)
    last = float(sampler.levels(model)[-2])
    expected = (1 + last**2) ** -0.5
    assert abs(float(x.std()) / expected - 1) < 4 / (2 * count) ** 0.5
    assert abs(float(x.mean())) < 4 * expected / count**0.5


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
def test_data_that_are_a_point_are_reached_exactly_on_every_chain(spacing, steps):
    for variance in ("small", "large"):
        x = sample(Ancestral.make({"steps": steps, "spacing": spacing, "variance": variance}), Exact(0.4, 0.0), 50)
        assert (x - 0.4).abs().max() < 1e-12


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("std", [0.3, 1.0])
def test_gaussian_data_get_the_right_spread_within_two_per_cent_over_all_steps(variance, std):
    count = 30_000
    x = sample(Ancestral.make({"variance": variance, "clip": False}), Exact(0.2, std), count)
    assert abs(float(x.std()) / std - 1) < 0.02
    assert abs(float(x.mean()) - 0.2) < 4 * std / count**0.5


def test_small_variance_equals_ddim_with_eta_1_and_the_same_noise():
    model = FromEps()
    for steps, spacing in ((1000, "leading"), (17, "trailing"), (50, "quad")):
        a = sample(Ancestral.make({"steps": steps, "spacing": spacing}), model, 64)
        b = sample(Ddim.make({"steps": steps, "spacing": spacing, "eta": 1.0}), model, 64)
        assert (a - b).abs().max() < 1e-9


def test_full_length_respacing_returns_the_original_betas():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    for spacing in SPACINGS:
        kept = 1 / (1 + spaced(Exact(), 1000, spacing, "ancestral") ** 2)  # ᾱ_T … ᾱ_1, 1
        assert (1 - kept[:-1] / kept[1:] - beta.flip(0)).abs().max() < 1e-12, spacing


def test_respacing_keeps_the_cumulative_products_of_the_kept_steps():
    model = Exact()
    table = schedules.linear(1000)
    for spacing in SPACINGS:
        kept = spaced(model, 37, spacing, "ancestral")
        assert torch.allclose(1 / (1 + kept[:-1].flip(0) ** 2), table[timesteps(1000, 37, spacing)], rtol=1e-10)
        assert kept[-1] == 0 and (kept.diff() < 0).all()


@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacings_give_different_steps_in_range_for_every_count(spacing):
    for total in (1, 2, 3, 4, 5, 10, 37, 100):
        for steps in range(1, total + 1):
            chosen = timesteps(total, steps, spacing)
            assert len(chosen) == steps and (chosen.diff() > 0).all(), (total, steps)
            assert chosen[0] >= 0 and chosen[-1] < total, (total, steps)
            if spacing in ("trailing", "linspace"):
                assert chosen[-1] == total - 1, (total, steps)


def test_0_steps_are_all_of_the_levels():
    assert torch.equal(Ancestral.make().levels(Exact())[:-1], Exact().levels)


@pytest.mark.parametrize("steps", [-1, 1001])
def test_more_steps_than_levels_and_fewer_than_none_are_refused_with_both_numbers(steps):
    with pytest.raises(GencliError, match=rf"{steps}.*1000"):
        sample(Ancestral.make({"steps": steps}), Exact(), 2)


def test_an_estimate_that_is_no_mean_is_refused():
    model = Exact()
    model.meaning = "transport"
    with pytest.raises(GencliError, match="transport"):
        sample(Ancestral.make(), model, 2)


def test_estimates_are_clipped_to_the_datas_range_only_where_there_is_one():
    count = 500
    bounded, free = Spec(Field("image", (1, 1, 1), range=(-1.0, 1.0))), Spec(Field("latent", (1, 1, 1)))
    model = Exact(std=3.0)
    assert sample(Ancestral.make({"steps": 20}), model, count, spec=bounded).abs().max() == 1
    assert sample(Ancestral.make({"steps": 20, "clip": False}), model, count, spec=bounded).abs().max() > 2
    assert sample(Ancestral.make({"steps": 20}), model, count, spec=free).abs().max() > 2


@pytest.mark.parametrize(
    ("variance", "steps", "spacing"),
    [
        ("small", 1000, "leading"),
        ("large", 1000, "leading"),
        ("small", 50, "leading"),
        ("large", 50, "leading"),
        ("small", 40, "trailing"),
        ("small", 30, "linspace"),
    ],
)
@pytest.mark.parametrize("clip", [True, False])
def test_the_whole_loop_equals_diffusers_with_the_same_noise_and_network(variance, steps, spacing, clip, monkeypatch):
    pytest.importorskip("diffusers")
    from diffusers import DDPMScheduler
    from diffusers.schedulers import scheduling_ddpm

    scheduler = DDPMScheduler(variance_type=f"fixed_{variance}", clip_sample=clip, timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    scheduler.alphas_cumprod, scheduler.one = schedules.linear(1000), scheduler.one.double()  # theirs are float32
    rng = Rng.batch("peer", total=8)
    noises = iter([rng.at("step", i).normal((8, 1)).double() for i in range(steps)])
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **kwargs: next(noises))
    noise = rng.at("start").normal((8, 1)).double()
    x = noise.clone()
    for t in scheduler.timesteps:
        x = scheduler.step(eps_network(x, int(t)), t, x).prev_sample
    spec = Spec(Field("points", (1,), range=(-1.0, 1.0)))
    sampler = Ancestral.make({"steps": steps, "spacing": spacing, "variance": variance, "clip": clip})
    *_, last = sampler.frames(FromEps(), spec, 8, rng, {})
    assert (last.x - x).abs().max() < 1e-5
