"""Guidance in an interval of levels: where it works, row by row, and what it costs."""

import pytest
import torch
from denoisers import Exact

from gencli.bundle import Run
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.evaluation.generate import Request, cost
from gencli.guidance._base import Guidance
from gencli.guidance._compose import composed
from gencli.guidance.cfg import guided
from gencli.guidance.interval import Interval, within
from gencli.samplers.ddim import Ddim
from gencli.samplers.heun import Heun

LABELLED = Spec(Field("points", (1,)), {"label": Field("label", (), vocab=3)})
X = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
LABEL = torch.tensor([0, 1, 2, 1, 0])


class Counting(Exact):
    """An exact denoiser whose label shifts its mean, and which counts its calls."""

    spec, calls = LABELLED, 0

    def denoise(self, x, sigma, label=None):
        self.calls += 1
        return super().denoise(x, sigma) + (0.0 if label is None else 0.1 * label[:, None].to(x))


def level(sigma):
    return torch.tensor(sigma, dtype=torch.float64)


def double(x, sigma):
    return 2 * x


def same(x, sigma):
    return x


def test_it_guides_above_the_least_and_up_to_the_greatest():
    made = Interval.make({"low": 0.5, "high": 2.0})(double, same)
    for sigma, factor in ((0.4, 1), (0.5, 1), (0.51, 2), (2.0, 2), (2.01, 1)):
        assert torch.equal(made(X, level(sigma)), factor * X)


def test_rows_of_other_levels_are_each_guided_by_their_own():
    sigma = torch.tensor([0.1, 0.6, 1.0, 3.0, 2.0], dtype=torch.float64)
    made = within(double, same, 0.5, 2.0)(X, sigma)
    assert torch.equal(made, X * torch.tensor([1, 2, 2, 1, 2], dtype=torch.float64)[:, None])
    alone = [within(double, same, 0.5, 2.0)(X[i : i + 1], sigma[i : i + 1]) for i in range(5)]
    assert torch.equal(made, torch.cat(alone)), "whatever the batch"


def test_outside_it_is_the_conditional_model_by_one_call():
    guidance = Guidance(3.0, (0.5, 2.0))
    for sigma, calls in ((0.3, 1), (1.0, 2), (9.0, 1)):
        model = Counting(std=0.7)
        made = composed(model.denoise, {"label": LABEL}, guidance, None)(X, level(sigma))
        assert model.calls == calls == guidance.calls_at([sigma], {"label": LABEL})
        inside = guided(model.denoise, {"label": LABEL}, 3.0 if calls == 2 else 1.0)(X, level(sigma))
        assert torch.equal(made, inside)


@pytest.mark.parametrize("sampler", [Ddim.make({"steps": 12}), Heun.make({"steps": 8})], ids=["ddim", "heun"])
def test_a_whole_walk_costs_what_is_announced(sampler):
    model = Counting(std=0.7)
    guidance = Guidance(2.0, (0.3, 5.0))
    run = Run(model, [], LABELLED, LABELLED, {})
    _, calls = cost(run, Request(range(5), {"label": LABEL}, sampler, guidance))
    list(sampler.frames(model, LABELLED, 5, Rng.rows(range(5)), {"label": LABEL}, guidance))
    levels = sampler.evaluations(model, LABELLED)
    assert model.calls == calls and levels < calls < 2 * levels


@pytest.mark.parametrize(("low", "high"), [(2.0, 0.5), (1.0, 1.0), (float("nan"), 1.0)])
def test_an_interval_without_a_level_is_refused(low, high):
    with pytest.raises(GencliError, match=r"is empty|low is 'nan'"):
        composed(double, {}, Guidance(2.0, (low, high)), None)
