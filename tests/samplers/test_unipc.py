"""UniPC: what its weights integrate exactly, and what its corrector does; order and diffusers are in files of their own."""

import itertools

import pytest
import torch
from denoisers import POINTS, AnyLevel, FromEps, even, sampled, walked

from gencli.core import Rng
from gencli.errors import GencliError
from gencli.samplers.dpmpp_2m import Dpmpp2m
from gencli.samplers.unipc import Unipc

START = torch.linspace(-80, 80, 9, dtype=torch.float64)[:, None]


def test_three_points_integrate_a_square_in_log_sigma_exactly():
    """∫ (log σ)² d(1/σ) = ((log σ + 1)² + 1) / σ, and x / σ is its integral."""
    levels = even("karras", 8, 0.1, 10.0)
    states = walked(Unipc.make({"order": 3}), lambda x, s: s.log() ** 2 + 0 * x, START, levels)
    whole = [((s.log() + 1) ** 2 + 1) / s for s in levels]
    moved = [
        b / t - a / s for (a, b), (s, t) in zip(itertools.pairwise(states), itertools.pairwise(levels), strict=True)
    ]
    gaps = [float((m - (b - a)).abs().max()) for m, (a, b) in zip(moved, itertools.pairwise(whole), strict=True)]
    assert max(gaps[3:]) < 1e-9 < 1e-3 < gaps[0]


def test_the_corrector_costs_no_evaluation():
    calls = []
    sampler, model = Unipc.make({"steps": 12}), AnyLevel(0.1, 0.3)
    walked(sampler, lambda x, s: calls.append(float(s)) or model.denoise(x, s), START, sampler.levels(model))
    assert calls == sampler.levels(model)[:-1].tolist() and len(calls) == sampler.evaluations(model, POINTS) == 12


def test_where_x_was_changed_since_nothing_is_corrected_and_two_points_are_dpmpp_2m():
    model, levels, rng = FromEps(), torch.cat([even("karras", 9), torch.zeros(1).double()]), Rng.batch(0, total=9)
    *_, touched = Unipc.make().run(model.denoise, START, levels, rng, after=lambda x, there, rng: x.clone())
    assert (touched.x - walked(Dpmpp2m.make(), model.denoise, START, levels)[-1]).abs().max() < 1e-10
    assert (touched.x - walked(Unipc.make(), model.denoise, START, levels)[-1]).abs().max() > 1e-4


@pytest.mark.parametrize("order", [1, 2, 3])
def test_with_the_corrector_the_same_evaluations_come_closer(order):
    model, levels = AnyLevel(0.0, 0.5), even("logsnr", 40, 0.05, 5.0)
    truth = START / 16 * ((0.25 + levels[-1] ** 2) / (0.25 + levels[0] ** 2)).sqrt()
    sampler = Unipc.make({"order": order})
    *_, plain = sampler.run(model.denoise, START / 16, levels, Rng.batch(0, total=9), after=lambda x, *_: x.clone())
    corrected = walked(sampler, model.denoise, START / 16, levels)[-1]
    assert (corrected - truth).abs().max() < 0.3 * (plain.x - truth).abs().max()


def test_the_order_is_between_1_and_3():
    with pytest.raises(GencliError, match="4"):
        Unipc.make({"order": 4})
    assert sampled(Unipc.make({"order": 3, "steps": 1}), AnyLevel()).isfinite().all()
