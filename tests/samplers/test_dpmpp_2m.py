"""DPM-Solver++(2M) against the paper's formula; order and diffusers are in files of their own."""

import itertools
import math

import torch
from denoisers import POINTS, AnyLevel, FromEps, even, sampled, walked

from gencli.core import Rng
from gencli.samplers.ddim import Ddim
from gencli.samplers.dpmpp_2m import Dpmpp2m

START = torch.linspace(-80, 80, 9, dtype=torch.float64)[:, None]


def test_every_step_is_the_papers_formula():
    model = FromEps()
    levels = torch.cat([even("karras", 9), torch.zeros(1, dtype=torch.float64)])
    x, before, h_before = START, None, None
    for here, there in itertools.pairwise(levels):
        found = model.denoise(x, here)
        if there == 0:
            x = found
            break
        h = math.log(here / there)
        if before is not None:
            r = h_before / h
            ahead = (1 + 1 / (2 * r)) * found - 1 / (2 * r) * before
        else:
            ahead = found
        x = there / here * x - math.expm1(-h) * ahead
        before, h_before = found, h
    assert (walked(Dpmpp2m.make(), model.denoise, START, levels)[-1] - x).abs().max() < 1e-10


def test_the_first_step_and_the_last_are_ddims():
    model = FromEps()
    for levels in ([80.0, 20.0], [3.0, 0.0]):
        pair = torch.tensor(levels, dtype=torch.float64)
        ours, ddim = (walked(kind.make(), model.denoise, START, pair)[-1] for kind in (Dpmpp2m, Ddim))
        assert (ours - ddim).abs().max() < 1e-12


def test_estimates_from_before_a_jump_to_more_noise_are_forgotten():
    model = FromEps()
    jump = torch.tensor([20.0, 10.0, 5.0, 12.0, 6.0], dtype=torch.float64)
    states = walked(Dpmpp2m.make(), model.denoise, START, jump)
    fresh = walked(Dpmpp2m.make(), model.denoise, states[3], jump[3:])
    assert (fresh[-1] - states[-1]).abs().max() < 1e-12
    whole = walked(Dpmpp2m.make(), model.denoise, START, jump[:3])
    half = walked(Dpmpp2m.make(), model.denoise, whole[1], jump[1:3])
    assert (half[-1] - whole[-1]).abs().max() > 1e-3, "what is remembered matters"


def test_gaussian_data_are_reached_with_few_evaluations():
    sampler, model, count = Dpmpp2m.make({"steps": 40}), AnyLevel(0.3, 0.5), 20_000
    assert sampler.evaluations(model, POINTS) == 40
    x = sampled(sampler, model, count)
    truth = 0.3 + 0.5 * Rng.batch(0, total=count).at("start").normal((count, 1)).double()
    assert (x - truth).abs().mean() < 0.01
