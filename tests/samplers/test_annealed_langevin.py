"""Annealed Langevin dynamics against the paper's algorithm, and the modes that it mixes."""

import math

import pytest
import torch
from denoisers import Exact

from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.samplers.annealed_langevin import AnnealedLangevin

POINTS = Spec(Field("points", (1,)))


class Ncsn(Exact):
    """E[x0 | x] for two points, −5 with weight 0.2 and 5 with 0.8, at a short table of levels."""

    def __init__(self, high, low, total):
        super().__init__()
        self.levels = torch.logspace(math.log10(high), math.log10(low), total, dtype=torch.float64)

    def denoise(self, x, sigma, **cond):
        log_odds = 10 * x / sigma**2 + math.log(4)
        return 10 * torch.sigmoid(log_odds) - 5

    def start(self, noise, sigma):
        return noise * sigma


def sample(sampler, model, count, seed=0):
    *_, last = sampler.frames(model, POINTS, count, Rng.batch(seed, total=count), {})
    return last.x


def test_a_run_is_the_papers_algorithm():
    """α_i = ε σ_i² / σ_L² with NCSN's ten levels and ε, x carried from level to level."""
    model, rng, inner = Ncsn(1.0, 0.01, 10), Rng.batch(5, total=6), 3
    eps = 2e-5
    x = rng.at("start").normal((6, 1)).double() * model.levels[0]
    for i, sigma in enumerate(model.levels):
        alpha = eps * sigma**2 / model.levels[-1] ** 2
        for t in range(inner):
            z = rng.at("step", i * inner + t).normal((6, 1)).double()
            x = x + alpha / 2 * (model.denoise(x, sigma) - x) / sigma**2 + alpha.sqrt() * z
    x = model.denoise(x, model.levels[-1])
    sampler = AnnealedLangevin.make({"inner": inner, "step_size": eps / 0.01**2})
    *_, last = sampler.frames(model, POINTS, 6, rng, {})
    assert (last.x - x).abs().max() < 1e-9


def test_noise_grows_with_the_square_root_of_the_level_ratio():
    """Where the score is 0 a step is its noise, and the ratio of the steps' variances is that of the levels squared."""
    model, rng = Ncsn(1.0, 0.01, 10), Rng.batch(0, total=4)
    sampler = AnnealedLangevin.make({"inner": 2, "denoise": False})
    levels, x, sizes = sampler.levels(model), torch.zeros(4, 1, dtype=torch.float64), []
    for i, frame in enumerate(sampler.run(lambda x, sigma: x, x, levels, rng)):
        now = frame.info["noisy"] * (1 + levels[i + 1] ** 2).sqrt()
        sizes.append(float(((now - x) / rng.at("step", i).normal((4, 1)).double())[0] ** 2))
        x = now
    expected = (model.levels / model.levels[-1]) ** 2
    assert torch.allclose(torch.tensor(sizes)[::2] / sizes[-1], expected.float(), rtol=1e-4)
    assert sizes[0::2] == pytest.approx(sizes[1::2])


def test_modes_get_their_weights_where_a_single_level_keeps_its_start():
    """NCSN's own picture: 0.8 of the data are on the right; one level alone stays at the half where it began."""
    count, model = 2000, Ncsn(20.0, 0.5, 20)
    annealed = sample(AnnealedLangevin.make({"inner": 100}), model, count)
    assert abs(float((annealed > 0).float().mean()) - 0.8) < 0.06
    assert ((annealed.abs() - 5).abs() < 0.5).all()
    model.levels = model.levels[-1:]
    begin = (Rng.batch(1, total=count).uniform((count, 1)).double() - 0.5) * 16
    sampler = AnnealedLangevin.make({"inner": 200})
    *_, last = sampler.run(model.denoise, begin, sampler.levels(model), Rng.batch(2, total=count))
    assert abs(float((last.x > 0).float().mean()) - 0.5) < 0.06


@pytest.mark.parametrize(
    ("settings", "count"), [({}, 10 * 12 + 1), ({"inner": 3, "denoise": False}, 30), ({"steps": 4, "inner": 2}, 9)]
)
def test_evaluations_are_levels_times_steps_and_one(settings, count):
    model, calls = Ncsn(1.0, 0.01, 10), []
    real = model.denoise

    def counted(x, sigma, **cond):
        calls.append(float(sigma))
        return real(x, sigma)

    model.denoise = counted
    sampler = AnnealedLangevin.make(settings)
    sample(sampler, model, 2)
    assert len(calls) == count == sampler.evaluations(model, POINTS)
    assert calls == sorted(calls, reverse=True)


def test_short_tables_are_visited_whole_and_others_at_fifty_levels():
    for total in (10, 232):
        model = Ncsn(50.0, 0.01, total)
        assert torch.equal(AnnealedLangevin.make().visited(model), model.levels)
    assert len(AnnealedLangevin.make().visited(Exact())) == 50
    assert len(AnnealedLangevin.make({"noise_schedule": "karras"}).visited(Ncsn(50.0, 0.01, 10))) == 10
    free = Exact()
    free.levels, free.sigma_min, free.sigma_max = None, 0.01, 50.0
    visited = AnnealedLangevin.make({"steps": 20}).visited(free)
    assert len(visited) == 20 and visited[0] == 50 and visited[-1] == 0.01


@pytest.mark.parametrize(("total", "step_size"), [(10, 0.2), (232, 0.124), (4, 0.2), (1, 0.2), (10, 2.0), (10, 3.0)])
def test_steps_suffice_to_forget_the_level_before(total, step_size):
    model, sampler = Ncsn(50.0, 0.01, total), AnnealedLangevin.make({"step_size": step_size})
    steps = sampler.enough(model.levels)
    ratio = float(model.levels[0] / model.levels[1]) if total > 1 else 1.0
    assert abs(1 - step_size / 2) ** steps * ratio <= 0.5 + 1e-12
    assert steps == 1 or abs(1 - step_size / 2) ** (steps - 1) * ratio > 0.5
    assert len(sampler.levels(model)) == total * steps + 2


def test_gaussian_data_get_their_spread_from_a_model_of_unit_variance():
    count = 5000
    x = sample(AnnealedLangevin.make(), Exact(0.2, 0.5), count)
    assert abs(float(x.mean()) - 0.2) < 0.05 and abs(float(x.std()) / 0.5 - 1) < 0.12


def test_more_levels_than_the_model_has_and_estimates_that_are_no_mean_are_refused():
    with pytest.raises(GencliError, match=r"11.*10"):
        sample(AnnealedLangevin.make({"steps": 11}), Ncsn(1.0, 0.01, 10), 1)
    model = Exact()
    model.meaning = "endpoint"
    with pytest.raises(GencliError, match="endpoint"):
        sample(AnnealedLangevin.make(), model, 1)
