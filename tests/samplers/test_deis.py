"""DEIS: what its weights integrate exactly; order and diffusers are in files of their own."""

import itertools

import pytest
import torch
from denoisers import POINTS, AnyLevel, FromEps, even, sampled, walked

from gencli.samplers.ddim import Ddim
from gencli.samplers.deis import Deis

START = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]


def integral(power, sigma):
    """∫ (log σ)^p dσ = σ (log σ)^p − p ∫ (log σ)^(p−1) dσ."""
    whole = sigma * sigma.log() ** power
    return whole - power * integral(power - 1, sigma) if power else whole


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("spacing", ["karras", "sigma"])
def test_any_steps_integrate_the_power_of_log_sigma_that_the_order_allows_and_no_higher(order, spacing):
    levels = even(spacing, 10, 0.1, 10.0)

    def gap(power):
        states = walked(Deis.make({"order": order}), lambda x, s: x - s * s.log() ** power, START, levels)
        pairs = list(zip(itertools.pairwise(states), itertools.pairwise(levels), strict=True))[order - 1 :]
        return max(float((b - a - (integral(power, t) - integral(power, s))).abs().max()) for (a, b), (s, t) in pairs)

    assert gap(order - 1) < 1e-11 and gap(order) > 1e-3


def test_the_first_step_is_ddims_and_the_last_is_the_estimate():
    model = FromEps()
    levels = torch.cat([even("karras", 7), torch.zeros(1, dtype=torch.float64)])
    states = walked(Deis.make(), model.denoise, 80 * START, levels)
    assert (states[1] - walked(Ddim.make(), model.denoise, 80 * START, levels[:2])[-1]).abs().max() < 1e-12
    assert (states[-1] - model.denoise(states[-2], levels[-2])).abs().max() < 1e-12


def test_weights_stay_accurate_where_steps_are_short():
    """A thousand levels: the moments of a step are differences of nearly equal numbers."""
    levels = even("logsnr", 1000, 0.1, 10.0)
    states = walked(Deis.make({"order": 4}), lambda x, s: x - s * s.log() ** 3, START, levels)
    moved = integral(3, levels[-1]) - integral(3, levels[3])
    assert (states[-1] - states[3] - moved).abs().max() < 1e-8


def test_gaussian_data_are_reached_with_few_evaluations():
    sampler, model = Deis.make({"steps": 20}), AnyLevel(0.3, 0.5)
    assert sampler.evaluations(model, POINTS) == 20
    few, many = sampled(sampler, model, 500), sampled(Deis.make({"steps": 400}), model, 500)
    assert (few - many).abs().max() < 0.01 and abs(float(many.std()) / 0.5 - 1) < 0.1
