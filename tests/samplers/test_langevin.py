"""Langevin dynamics at one level against its stationary distribution, and where it fails."""

import pytest
import torch
from denoisers import Exact

from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.samplers.langevin import Langevin

POINTS = Spec(Field("points", (1,)))


class TwoModes(Exact):
    """E[x0 | x] for two points, −5 with weight 0.2 and 5 with 0.8."""

    def denoise(self, x, sigma, **cond):
        log_odds = 10 * x / sigma**2 + torch.log(torch.tensor(4.0, dtype=x.dtype))
        return 10 * torch.sigmoid(log_odds) - 5


def sample(sampler, model, count, seed=0):
    *_, last = sampler.frames(model, POINTS, count, Rng.batch(seed, total=count), {})
    return last.x


@pytest.mark.parametrize("std", [0.0, 0.7])
def test_a_step_is_the_papers_formula(std):
    model, sigma, rng = Exact(0.3, std), torch.tensor(0.5, dtype=torch.float64), Rng.batch(3, total=9)
    x = rng.at("x").normal((9, 1)).double()
    sampler, memory = Langevin.make({"step_size": 0.8}), {}
    eps = 0.8 * 0.25
    score = (0.3 - x) / (std**2 + 0.25)
    expected = x + eps / 2 * score + eps**0.5 * rng.at("step").normal((9, 1)).double()
    made = sampler.step(model.denoise, x, sigma, sigma, memory, rng.at("step"))
    assert (made - expected).abs().max() < 1e-12
    assert torch.equal(memory["x0"], model.denoise(x, sigma))


@pytest.mark.parametrize(("step_size", "steps", "ratio"), [(0.5, 60, 1.143), (0.1, 250, 1.026)])
def test_it_settles_at_the_stationary_variance_of_its_step_size(step_size, steps, ratio):
    """The data are a point, so that noisy data have variance σ², and the step relative to it is the step of N(0, 1)."""
    count = 20_000
    sampler = Langevin.make({"sigma": 2.0, "step_size": step_size, "steps": steps, "denoise": False})
    x = sample(sampler, Exact(0.3, 0.0), count)
    assert ratio == pytest.approx(1 / (1 - step_size / 4), abs=1e-3)
    assert float(x.var()) / 4 == pytest.approx(ratio, abs=4 * ratio * (2 / count) ** 0.5)
    assert abs(float(x.mean()) - 0.3) < 4 * 2 * ratio**0.5 / count**0.5


def test_it_does_not_mix_modes_that_lie_apart():
    """Every sample stays on the side where it began: half of them on each, where the data have a fifth and four fifths."""
    count = 500
    model, rng = TwoModes(), Rng.batch(0, total=count)
    begin = (rng.at("begin").uniform((count, 1)).double() - 0.5) * 16
    sampler = Langevin.make({"sigma": 0.5, "steps": 500})
    *_, last = sampler.run(model.denoise, begin, sampler.levels(model), rng)
    assert ((last.x > 0) == (begin > 0)).float().mean() > 0.98
    assert abs(float((last.x > 0).float().mean()) - 0.5) < 0.07


def test_it_ends_with_the_estimate_or_with_noise_as_asked():
    model = Exact(0.4, 0.0)
    assert (sample(Langevin.make({"steps": 3}), model, 50) - 0.4).abs().max() < 1e-12
    noisy = sample(Langevin.make({"steps": 100, "sigma": 0.1, "denoise": False}), model, 500)
    assert 0.05 < float(noisy.std()) < 0.2


def test_the_default_level_is_a_half_or_the_models_nearest():
    assert set(Langevin.make().levels(Exact()).tolist()) == {0.5, 0.0}
    few = Exact()
    for table, chosen in (([0.1], 0.1), ([9.0, 2.0], 2.0)):
        few.levels = torch.tensor(table, dtype=torch.float64)
        assert Langevin.make().levels(few)[0] == chosen


def test_evaluations_are_counted():
    model, calls = Exact(), []

    def counted(x, sigma, **cond):
        calls.append(float(sigma))
        return Exact.denoise(model, x, sigma)

    model.denoise = counted
    for settings, expected in (({"steps": 7}, 8), ({"steps": 7, "denoise": False}, 7)):
        calls.clear()
        sampler = Langevin.make(settings)
        sample(sampler, model, 2)
        assert len(calls) == expected == sampler.evaluations(model, POINTS)
        assert set(calls) == {0.5}


@pytest.mark.parametrize("sigma", [1e-4, 500.0])
def test_a_level_that_the_model_does_not_have_is_refused(sigma):
    with pytest.raises(GencliError, match=f"{sigma:g}"):
        sample(Langevin.make({"sigma": sigma}), Exact(), 1)


def test_an_estimate_that_is_no_mean_is_refused():
    model = Exact()
    model.meaning = "transport"
    with pytest.raises(GencliError, match="transport"):
        sample(Langevin.make(), model, 1)


def test_a_sample_does_not_depend_on_its_batch_mates():
    sampler, model = Langevin.make({"steps": 5}), Exact()
    *_, whole = sampler.frames(model, POINTS, 5, Rng.rows(range(5)), {})
    alone = [list(sampler.frames(model, POINTS, 1, Rng.rows([i]), {}))[-1].x for i in range(5)]
    assert torch.equal(whole.x, torch.cat(alone))
