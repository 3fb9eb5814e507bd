"""iPNDM: what its coefficients integrate exactly; the order is in a file of its own."""

import itertools

import pytest
import torch
from denoisers import POINTS, AnyLevel, FromEps, even, sampled, walked

from gencli.samplers.euler import Euler
from gencli.samplers.ipndm import Ipndm

START = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_even_steps_integrate_the_power_that_the_order_allows_and_no_higher(order):
    levels = even("sigma", 10, 1.0, 3.0)

    def gap(power):
        states = walked(Ipndm.make({"order": order}), lambda x, s: x - s * s**power, START, levels)
        pairs = list(zip(itertools.pairwise(states), itertools.pairwise(levels), strict=True))[order - 1 :]
        return max(
            float((b - a - (t ** (power + 1) - s ** (power + 1)) / (power + 1)).abs().max()) for (a, b), (s, t) in pairs
        )

    assert gap(order - 1) < 1e-12 and gap(order) > 1e-5


def test_the_first_step_is_eulers_and_the_last_is_the_estimate():
    model = FromEps()
    levels = torch.cat([even("karras", 7), torch.zeros(1, dtype=torch.float64)])
    states = walked(Ipndm.make(), model.denoise, 80 * START, levels)
    assert (states[1] - walked(Euler.make(), model.denoise, 80 * START, levels[:2])[-1]).abs().max() < 1e-12
    assert (states[-1] - model.denoise(states[-2], levels[-2])).abs().max() < 1e-12


def test_gaussian_data_are_reached_with_few_evaluations():
    sampler, model = Ipndm.make({"steps": 30}), AnyLevel(0.3, 0.5)
    assert sampler.evaluations(model, POINTS) == 30
    few, many = sampled(sampler, model, 500), sampled(Ipndm.make({"steps": 400}), model, 500)
    assert (few - many).abs().max() < 0.02 and abs(float(many.std()) / 0.5 - 1) < 0.1
