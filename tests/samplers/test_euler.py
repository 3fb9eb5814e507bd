"""Euler against DDIM and against plain Euler steps in a model's own time."""

import itertools

import pytest
import torch
from denoisers import POINTS, AnyLevel, FromEps, Mixed, even, sampled, walked

from gencli.core import Rng
from gencli.errors import GencliError
from gencli.samplers.ddim import Ddim
from gencli.samplers.euler import Euler


class Straight(Mixed):
    """`Mixed` as flow matching sees it: σ = (1 − τ) / τ, evenly trained in τ."""

    sigma_max = 1000.0

    def sigma_at(self, u):
        tau = (1 - u).clamp(min=1 / 1001)
        return (1 - tau) / tau

    def velocity(self, x, tau):
        """E[x0 − n | x_τ] for x_τ = τ x0 + (1 − τ) n."""
        return (self.denoise(x / tau, (1 - tau) / tau) - x) / (1 - tau)


def test_it_is_ddim_without_noise_on_the_same_levels():
    for schedule in ("model", "karras"):
        settings = {"steps": 9, "noise_schedule": schedule}
        assert torch.equal(sampled(Euler.make(settings), FromEps()), sampled(Ddim.make(settings), FromEps()))


def test_by_default_it_is_eulers_method_of_equal_steps_in_the_time_of_a_straight_path():
    model, steps = Straight(), 7
    levels = Euler.make({"steps": steps}).levels(model)
    tau = 1 / (1 + levels)
    assert torch.allclose(tau, torch.linspace(0, 1, steps + 1, dtype=torch.float64), atol=1e-3)
    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    x = tau[0] * levels[0] * noise
    for now, after in itertools.pairwise(tau):
        x = x + (after - now) * model.velocity(x, now)
    made = walked(Euler.make(), model.denoise, levels[0] * noise, levels)[-1]
    assert (made - x).abs().max() < 1e-10


def test_levels_that_ascend_lead_back_to_noise():
    data, levels = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None], even("karras", 400)
    model, sampler = Mixed(), Euler.make()
    up = torch.cat([torch.zeros(1, dtype=torch.float64), levels.flip(0)])
    *_, noise = sampler.run(model.denoise, data, up, Rng.batch(0, total=5), rise="step")
    assert (model.carried(data, up[0] + 1e-9, up[-1]) - noise.x).abs().max() < 2  # of 80
    *_, back = sampler.run(model.denoise, noise.x, up.flip(0), Rng.batch(0, total=5))
    assert (back.x - data).abs().max() < 0.02


def test_a_step_costs_one_evaluation():
    assert Euler.make({"steps": 12}).evaluations(AnyLevel(), POINTS) == 12


def test_more_steps_than_trained_levels_are_refused():
    with pytest.raises(GencliError, match=r"1001.*1000"):
        sampled(Euler.make({"steps": 1001}), FromEps())
