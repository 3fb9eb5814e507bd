"""Order of convergence of every deterministic sampler, against the closed form of the probability-flow ODE.

From σ = 80 to σ = 0.002, evenly in σ^(1/7): all of the default levels but the last step, to σ = 0, which is of first order
for every sampler and costs as much as 0.002 is small. Errors are the largest of six points, over four doublings of the steps.
"""

import itertools

import pytest
import torch
from denoisers import Gaussian, Mixed, even, slope, walked

from gencli import registry

CLAIMS = [
    ("ddim", {}, 1),
    ("euler", {}, 1),
    ("heun", {}, 2),
    ("dpmpp-2m", {}, 2),
    ("dpmpp-2m-sde", {"eta": 0.0}, 2),
    ("dpmpp-sde", {"eta": 0.0}, 2),
    ("unipc", {"order": 1}, 2),
    ("unipc", {}, 3),
    ("unipc", {"order": 3}, 4),
    ("ipndm", {}, 2),
    ("deis", {"order": 2}, 2),
    ("deis", {}, 3),
]
STEPS = (32, 64, 128, 256, 512)
AT = torch.tensor([-1.5, -0.7, -0.3, 0.25, 0.8, 1.6], dtype=torch.float64)[:, None]


def errors(name, settings, data, steps=STEPS):
    sampler = registry.load("samplers", name).make(settings)
    start, first, last = 80 * AT, *even("karras", 1)
    truth = data.carried(start, first, last)
    return [float((walked(sampler, data.denoise, start, even("karras", n))[-1] - truth).abs().max()) for n in steps]


@pytest.mark.parametrize("data", [Gaussian(), Mixed()], ids=["gaussian", "mixture"])
@pytest.mark.parametrize(("name", "settings", "order"), CLAIMS)
def test_the_error_falls_with_the_order_that_is_claimed(name, settings, order, data):
    found = errors(name, settings, data)
    assert slope(found) > order - 0.2, found
    assert found[0] < 0.15 and all(b < a for a, b in itertools.pairwise(found))


def test_the_bar_of_the_second_order_is_missed_by_a_method_of_the_first():
    assert slope(errors("euler", {}, Mixed())) < 1.2


def test_the_closed_form_for_a_gaussian_is_that_of_the_mixture():
    first, last = even("karras", 1)
    scale = ((0.25 + last**2) / (0.25 + first**2)).sqrt()
    assert (Gaussian().carried(80 * AT, first, last) - 0.3 - scale * (80 * AT - 0.3)).abs().max() < 1e-12


def test_the_last_step_to_zero_costs_as_much_as_the_least_level_is_small():
    data = Mixed()
    start, first = 80 * AT, torch.tensor(80.0, dtype=torch.float64)
    levels = torch.cat([even("karras", 256), torch.zeros(1, dtype=torch.float64)])
    truth = data.carried(start, first, torch.zeros((), dtype=torch.float64))
    made = walked(registry.load("samplers", "unipc").make({"order": 3}), data.denoise, start, levels)[-1]
    assert (made - truth).abs().max() < 1e-4
