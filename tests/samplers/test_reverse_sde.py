"""The reverse SDE against Gaussian data's moments, followed exactly, and against DDPM's ancestral step."""

import itertools
import math

import pytest
import torch
from denoisers import Exact, FromEps, eps_network

from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.samplers.ancestral import Ancestral
from gencli.samplers.reverse_sde import ReverseSde, process_of

POINTS = Spec(Field("points", (1,)))


class Still:
    """An `Rng` whose noise is a given number."""

    def __init__(self, value):
        self.value = value

    def at(self, *keys):
        return self

    def normal(self, shape):
        return torch.full(tuple(shape), self.value)


class Exploding(Exact):
    """Gaussian data at any level, noise without signal at the start."""

    process = "ve"
    levels, sigma_min, sigma_max = None, 0.002, 80.0

    def __init__(self, mean=0.0, std=1.0):
        self.mean, self.std = mean, std

    def start(self, noise, sigma):
        return noise * sigma


class Preserving(Exploding):
    """The same, with a start of unit variance in VP's coordinates."""

    process = "vp"
    sigma_min, sigma_max = 0.01, 157.0

    def start(self, noise, sigma):
        return noise * (1 + sigma**2).sqrt()


def sample(sampler, model, count, seed=0):
    *_, last = sampler.frames(model, POINTS, count, Rng.batch(seed, total=count), {})
    return last.x


def one(sampler, model, x, here, there, noise):
    memory = {"process": process_of(model)}
    return sampler.step(model.denoise, torch.tensor([[x]], dtype=torch.float64), here, there, memory, Still(noise))


def moments(sampler, model):
    """Mean and standard deviation at the end: each step is affine in x and in its noise for Gaussian data."""
    levels = sampler.levels(model)
    mean, variance = 0.0, float(model.start(torch.ones(1, 1, dtype=torch.float64), levels[0])) ** 2
    for here, there in itertools.pairwise(levels):
        shift = float(one(sampler, model, 0.0, here, there, 0.0))
        slope = float(one(sampler, model, 1.0, here, there, 0.0)) - shift
        noise = float(one(sampler, model, 0.0, here, there, 1.0)) - shift
        mean, variance = slope * mean + shift, slope**2 * variance + noise**2
    return mean, math.sqrt(variance)


@pytest.mark.parametrize("make", [Preserving, Exploding])
@pytest.mark.parametrize("schedule", ["own", "linear", "logsnr"])
def test_mean_and_spread_are_within_two_per_cent_and_the_error_halves_when_steps_double(make, schedule):
    model, errors = make(0.3, 0.5), []
    for steps in (75, 150, 300, 600):
        mean, std = moments(ReverseSde.make({"steps": steps, "noise_schedule": schedule}), model)
        errors.append(std / 0.5 - 1)
    assert abs(errors[-1]) < 0.02 and abs(mean / 0.3 - 1) < 0.02
    assert all(1.7 < a / b < 2.4 for a, b in itertools.pairwise(errors)), errors


@pytest.mark.parametrize("make", [Exact, Exploding])
def test_samples_have_the_moments_of_the_chain(make):
    count, model, sampler = 20_000, make(0.3, 0.5), ReverseSde.make({"steps": 40, "clip": False})
    x, (mean, std) = sample(sampler, model, count), moments(sampler, model)
    assert abs(float(x.mean()) - mean) < 4 * std / count**0.5
    assert abs(float(x.std()) / std - 1) < 4 / (2 * count) ** 0.5


def test_a_vp_step_agrees_with_ddpms_ancestral_step_to_second_order_in_beta():
    model, here = FromEps(), torch.tensor(0.8, dtype=torch.float64)
    apart = []
    for beta in (0.04, 0.02, 0.01, 0.005):
        there = ((1 + here**2) * (1 - beta) - 1).sqrt()  # ᾱ_there (1 − β) = ᾱ_here
        scale = (1 + there**2).sqrt()
        pair = ReverseSde.make({"process": "vp"}), Ancestral.make({"variance": "large"})
        ours, theirs = ([float(one(s, model, 0.7, here, there, z) / scale) for z in (0.0, 1.0)] for s in pair)
        apart.append((ours[0] - theirs[0], (ours[1] - ours[0]) ** 2 - (theirs[1] - theirs[0]) ** 2))
    for (mean, variance), (mean_half, variance_half) in itertools.pairwise(apart):
        assert 3.5 < mean / mean_half < 4.6 and 3.5 < variance / variance_half < 4.6
    assert abs(apart[-1][0]) < 1e-3 * 0.005


def test_a_vp_step_is_euler_maruyama_in_vp_coordinates():
    """y ← y + (½ y + s(y)) b + √b z for the chain y = √ᾱ x, with the network's score −ε / √(1 − ᾱ)."""
    model = FromEps()
    here, there = model.levels[400], model.levels[430]
    y, z, kept = 0.7, -0.4, 1 / (1 + here**2)
    spent = torch.log((1 + here**2) / (1 + there**2))
    eps = eps_network(torch.tensor(y, dtype=torch.float64), 1000 - 1 - 400)
    expected = y + spent * (y / 2 - eps / (1 - kept).sqrt()) + spent.sqrt() * z
    made = one(ReverseSde.make(), model, float(y / kept.sqrt()), here, there, z) / (1 + there**2).sqrt()
    assert float(made) == pytest.approx(float(expected), abs=1e-7)  # the stub's noise is float32


def test_a_ve_step_is_the_papers():
    model = FromEps()
    here, there = model.levels[400], model.levels[430]
    score = (model.denoise(torch.tensor([[0.7]], dtype=torch.float64), here) - 0.7) / here**2
    expected = 0.7 + (here**2 - there**2) * score + (here**2 - there**2).sqrt() * 0.5
    assert float(one(ReverseSde.make({"process": "ve"}), model, 0.7, here, there, 0.5) - expected) == pytest.approx(0)


def test_the_process_is_the_models_own_by_its_word_or_by_its_start():
    silent = Exploding()
    silent.process = None
    assert [process_of(m) for m in (Exact(), Exploding(), silent)] == ["vp", "ve", "ve"]
    same = sample(ReverseSde.make({"steps": 9}), Exact(), 4)
    assert torch.equal(same, sample(ReverseSde.make({"steps": 9, "process": "vp"}), Exact(), 4))
    assert not torch.equal(same, sample(ReverseSde.make({"steps": 9, "process": "ve"}), Exact(), 4))


@pytest.mark.parametrize("process", ["vp", "ve"])
def test_the_last_step_has_no_noise_and_evaluations_are_the_steps(process):
    model, sampler = Exact(0.4, 0.0), ReverseSde.make({"steps": 12, "process": process})
    assert (sample(sampler, model, 50) - 0.4).abs().max() < 1e-12
    assert sampler.evaluations(model, POINTS) == 12


def test_an_estimate_that_is_no_mean_is_refused():
    model = Exact()
    model.meaning = "transport"
    with pytest.raises(GencliError, match="transport"):
        sample(ReverseSde.make(), model, 1)


def test_a_sample_does_not_depend_on_its_batch_mates():
    sampler, model = ReverseSde.make({"steps": 5}), Exact()
    *_, whole = sampler.frames(model, POINTS, 5, Rng.rows(range(5)), {})
    alone = [list(sampler.frames(model, POINTS, 1, Rng.rows([i]), {}))[-1].x for i in range(5)]
    assert torch.equal(whole.x, torch.cat(alone))
