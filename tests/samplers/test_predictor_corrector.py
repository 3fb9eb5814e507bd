"""Predictor-corrector sampling against the paper's algorithm, row by row."""

import itertools

import pytest
import torch
from denoisers import Exact

from gencli.core import Field, Rng, Spec
from gencli.samplers.predictor_corrector import PredictorCorrector, corrected
from gencli.samplers.reverse_sde import ReverseSde

VECTORS = Spec(Field("points", (256,)))


class Exploding(Exact):
    """Gaussian data at any level, noise without signal at the start."""

    levels, sigma_min, sigma_max = None, 0.002, 80.0

    def __init__(self, mean=0.0, std=1.0):
        self.mean, self.std = mean, std

    def start(self, noise, sigma):
        return noise * sigma


def sample(sampler, model, count, seed=0):
    *_, last = sampler.frames(model, VECTORS, count, Rng.batch(seed, total=count), {})
    return last.x


def test_a_run_is_the_papers_algorithm_with_norms_of_each_row():
    """Algorithm 2 (VE): x ← x + (σ² − σ'²) s + √(σ² − σ'²) z, then M times x ← x + ε s + √(2ε) z at σ'."""
    model, rng, snr = Exploding(0.3, 0.5), Rng.batch(1, total=3), 0.2
    sampler = PredictorCorrector.make({"steps": 6, "corrector": 2, "snr": snr})
    levels = sampler.levels(model)
    rows = []
    for row in range(3):
        x = rng.at("start").normal((3, 256)).double()[row] * levels[0]
        for i, (here, there) in enumerate(itertools.pairwise(levels)):
            if there == 0:
                x = model.denoise(x, here)
                continue
            stream, fall = rng.at("step", i), here**2 - there**2
            z = stream.normal((3, 256)).double()[row]
            x = x + fall * (model.denoise(x, here) - x) / here**2 + fall.sqrt() * z
            for j in range(2):
                z = stream.at("corrector", j).normal((3, 256)).double()[row]
                g = (model.denoise(x, there) - x) / there**2
                eps = 2 * (snr * z.norm() / g.norm()) ** 2
                x = x + eps * g + (2 * eps).sqrt() * z
        rows.append(x)
    *_, last = sampler.frames(model, VECTORS, 3, rng, {})
    assert (last.x - torch.stack(rows)).abs().max() < 1e-9


@pytest.mark.parametrize("make", [Exact, Exploding])
def test_without_a_corrector_it_is_the_reverse_sde(make):
    model = make(0.3, 0.5)
    plain = sample(ReverseSde.make({"steps": 15}), model, 4)
    assert torch.equal(sample(PredictorCorrector.make({"steps": 15, "corrector": 0}), model, 4), plain)
    assert not torch.equal(sample(PredictorCorrector.make({"steps": 15, "corrector": 1}), model, 4), plain)


def test_the_corrector_is_the_same_in_vp_coordinates():
    """y ← y + ε s_y + √(2ε) z with ε = 2 (r ‖z‖ / ‖s_y‖)², for y = x / √(1 + σ²), whose score is √(1 + σ²) that of x."""
    model, sigma, rng = Exact(0.3, 0.5), torch.tensor(0.7, dtype=torch.float64), Rng.batch(2, total=1)
    x, z = (rng.at(key).normal((1, 256)).double() for key in "xz")
    x0, scale = model.denoise(x, sigma), (1 + sigma**2).sqrt()
    y, score = x / scale, scale * (x0 - x) / sigma**2
    eps = 2 * (0.16 * z.norm() / score.norm()) ** 2
    expected = scale * (y + eps * score + (2 * eps).sqrt() * z)
    assert (corrected(x, x0, sigma, z, 0.16) - expected).abs().max() < 1e-12


def test_correction_brings_the_spread_closer_to_the_datas():
    """Few steps of the predictor leave too much noise; Langevin steps settle at 1 / √(1 − r²), 1.3 % above."""
    model, count, errors = Exploding(0.0, 0.5), 100, []
    for corrector in (0, 2, 10):
        sampler = PredictorCorrector.make({"steps": 20, "corrector": corrector, "clip": False})
        errors.append(abs(float(sample(sampler, model, count).std()) / 0.5 - 1))
    assert errors[0] > 0.15 and errors[1] < 0.9 * errors[0] and errors[2] < 0.5 * errors[0], errors


@pytest.mark.parametrize(("steps", "corrector", "calls"), [(6, 0, 6), (6, 1, 11), (4, 3, 13), (1, 2, 1)])
def test_evaluations_are_counted(steps, corrector, calls):
    model, seen = Exact(0.3, 0.5), []
    real = model.denoise

    def counted(x, sigma, **cond):
        seen.append(float(sigma))
        return real(x, sigma)

    model.denoise = counted
    sampler = PredictorCorrector.make({"steps": steps, "corrector": corrector})
    sample(sampler, model, 2)
    assert len(seen) == calls == sampler.evaluations(model, VECTORS)


def test_a_sample_does_not_depend_on_its_batch_mates():
    sampler, model = PredictorCorrector.make({"steps": 5}), Exact(0.3, 0.5)
    *_, whole = sampler.frames(model, VECTORS, 5, Rng.rows(range(5)), {})
    alone = [list(sampler.frames(model, VECTORS, 1, Rng.rows([i]), {}))[-1].x for i in range(5)]
    assert (whole.x - torch.cat(alone)).abs().max() < 1e-12


def test_a_row_without_a_score_stays_where_it_is():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    x0 = torch.stack([x[0], torch.zeros(2, dtype=torch.float64)])
    made = corrected(x, x0, torch.tensor(0.5, dtype=torch.float64), torch.ones_like(x), 0.16)
    assert torch.equal(made[0], x[0]) and torch.isfinite(made).all() and not torch.equal(made[1], x[1])
