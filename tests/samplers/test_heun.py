"""Heun's method against the paper's algorithm, its cost, and Gaussian data."""

import itertools
import math

import pytest
import torch
from denoisers import POINTS, AnyLevel, FromEps, even, sampled, walked

from gencli.core import Rng
from gencli.errors import GencliError
from gencli.samplers.heun import Heun

HALF = AnyLevel(0.0, 0.5)


def counted(denoise):
    calls = []

    def counting(x, sigma):
        calls.append(float(sigma))
        return denoise(x, sigma)

    return counting, calls


def test_18_steps_take_35_evaluations_the_last_of_them_at_the_least_level():
    sampler = Heun.make()
    denoise, calls = counted(HALF.denoise)
    levels = sampler.levels(HALF)
    walked(sampler, denoise, torch.full((1, 1), 80.0, dtype=torch.float64), levels)
    assert len(calls) == sampler.evaluations(HALF, POINTS) == 35
    assert calls[-1] == levels[-2] and min(calls) > 0


@pytest.mark.parametrize(("steps", "error"), [(18, 0.0276), (36, 0.0061), (72, 0.0014)])
def test_the_error_on_gaussian_data_from_80_is_the_known_one(steps, error):
    sampler = Heun.make({"steps": steps})
    made = walked(sampler, HALF.denoise, torch.full((1, 1), 80.0, dtype=torch.float64), sampler.levels(HALF))[-1]
    assert float(made) - 80 * 0.5 / math.sqrt(0.25 + 80**2) == pytest.approx(error, abs=6e-5)


@pytest.mark.parametrize(
    "churn",
    [
        {"s_churn": 0.0},
        {"s_churn": 4.0},
        {"s_churn": 80.0, "s_noise": 1.003},
        {"s_churn": 3.0, "s_min": 0.05, "s_max": 50.0},
    ],
)
def test_every_step_is_the_papers_algorithm(churn):
    steps, model, rng = 12, FromEps(), Rng.batch(0, total=16)
    sampler = Heun.make({"steps": steps, **churn})
    levels = sampler.levels(model)
    x = model.start(rng.at("start").normal((16, 1)).double(), levels[0])
    low, high = churn.get("s_min", 0.0), churn.get("s_max", math.inf)
    for i, (here, there) in enumerate(itertools.pairwise(levels)):
        gamma = min(churn["s_churn"] / steps, math.sqrt(2) - 1) if low <= here <= high else 0.0
        hat = here + gamma * here
        z = churn.get("s_noise", 1.0) * rng.at("step", i).normal((16, 1)).double()
        x_hat = x + (hat**2 - here**2).sqrt() * z
        d = (x_hat - model.denoise(x_hat, hat)) / hat
        x = x_hat + (there - hat) * d
        if there != 0:
            x = x_hat + (there - hat) * (d / 2 + (x - model.denoise(x, there)) / there / 2)
    assert (sampled(sampler, model) - x).abs().max() < 1e-9


def test_without_churn_nothing_is_drawn():
    model, levels = FromEps(), even("karras", 6)
    start = torch.linspace(-80, 80, 5, dtype=torch.float64)[:, None]
    a, b = (walked(Heun.make({"steps": 6}), model.denoise, start, levels, seed)[-1] for seed in (0, 1))
    c, d = (walked(Heun.make({"steps": 6, "s_churn": 2.0}), model.denoise, start, levels, s)[-1] for s in (0, 1))
    assert torch.equal(a, b) and (c - d).abs().min() > 0


@pytest.mark.parametrize("churn", [{}, {"s_churn": 40.0}, {"s_churn": 40.0, "s_min": 0.05, "s_max": 50.0}])
def test_gaussian_data_get_the_right_mean_and_spread(churn):
    count = 20_000
    x = sampled(Heun.make({"steps": 100, **churn}), AnyLevel(0.3, 0.5), count)
    assert abs(float(x.mean()) - 0.3) < 4 * 0.5 / count**0.5
    assert abs(float(x.std()) / 0.5 - 1) < 0.02


def test_churn_is_refused_for_an_estimate_that_is_no_mean_but_determinism_is_not():
    model = AnyLevel()
    model.meaning = "transport"
    sampled(Heun.make({"steps": 3}), model)
    with pytest.raises(GencliError, match=r"s-churn 1\.0.*transport"):
        sampled(Heun.make({"steps": 3, "s_churn": 1.0}), model)
