"""Ancestral Euler steps against the formula, DDPM and Gaussian data."""

import itertools

import pytest
import torch
from denoisers import AnyLevel, Exact, FromEps, sampled

from gencli.core import Rng
from gencli.errors import GencliError
from gencli.samplers.ancestral import Ancestral
from gencli.samplers.euler import Euler
from gencli.samplers.euler_ancestral import EulerAncestral


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_every_step_goes_down_too_far_and_up_again(eta):
    model, rng = FromEps(), Rng.batch(0, total=16)
    sampler = EulerAncestral.make({"steps": 11, "eta": eta})
    levels = sampler.levels(model)
    x = model.start(rng.at("start").normal((16, 1)).double(), levels[0])
    for i, (here, there) in enumerate(itertools.pairwise(levels)):
        up = eta * (there**2 * (here**2 - there**2) / here**2).sqrt()
        down = (there**2 - up**2).sqrt()
        x = x + (down - here) * (x - model.denoise(x, here)) / here + up * rng.at("step", i).normal((16, 1)).double()
    assert (sampled(sampler, model) - x).abs().max() < 1e-9


def test_eta_0_is_euler_and_eta_1_is_ddpm():
    model, settings = FromEps(), {"steps": 13, "noise_schedule": "model"}
    assert torch.equal(
        sampled(EulerAncestral.make({**settings, "eta": 0.0}), model), sampled(Euler.make(settings), model)
    )
    ddpm = sampled(Ancestral.make({**settings, "variance": "small"}), model)
    assert (sampled(EulerAncestral.make(settings), model) - ddpm).abs().max() < 1e-9


@pytest.mark.parametrize("model", [Exact(0.3, 0.5), AnyLevel(0.3, 0.5)], ids=["table", "any level"])
def test_gaussian_data_get_the_right_mean_and_spread(model):
    count = 20_000
    x = sampled(EulerAncestral.make({"steps": 400}), model, count)
    assert abs(float(x.mean()) - 0.3) < 4 * 0.5 / count**0.5
    assert abs(float(x.std()) / 0.5 - 1) < 0.03


def test_an_estimate_that_is_no_mean_is_refused():
    model = Exact()
    model.meaning = "transport"
    with pytest.raises(GencliError, match="transport"):
        sampled(EulerAncestral.make({"steps": 3}), model)
