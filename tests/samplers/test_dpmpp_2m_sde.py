"""SDE-DPM-Solver++(2M) against its deterministic form, its exact solution and Gaussian data."""

import pytest
import torch
from denoisers import AnyLevel, Exact, FromEps, sampled, walked

from gencli.errors import GencliError
from gencli.samplers.dpmpp_2m import Dpmpp2m
from gencli.samplers.dpmpp_2m_sde import Dpmpp2mSde


def test_eta_0_is_dpmpp_2m():
    for model in (FromEps(), AnyLevel(0.2, 0.4)):
        settings = {"steps": 14}
        made = sampled(Dpmpp2mSde.make({**settings, "eta": 0.0}), model)
        assert (made - sampled(Dpmpp2m.make(settings), model)).abs().max() < 1e-12


@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_around_a_known_point_every_level_has_its_noise_however_few_the_steps(eta):
    """The estimate stays as it is, so a step is the SDE's exact solution: x − D has standard deviation σ at each level."""
    count, model = 20_000, AnyLevel(0.4, 0.0)
    levels = torch.tensor([10.0, 4.0, 0.5, 0.1, 0.0], dtype=torch.float64)
    start = 0.4 + 10 * torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    states = walked(Dpmpp2mSde.make({"eta": eta}), model.denoise, start, levels)
    for x, sigma in zip(states[:-1], levels, strict=False):
        assert abs(float((x - 0.4).std() / sigma) - 1) < 4 / (2 * count) ** 0.5
    assert (states[-1] - 0.4).abs().max() < 1e-12


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_gaussian_data_get_the_right_mean_and_spread(eta):
    count = 20_000
    for model in (Exact(0.3, 0.5), AnyLevel(0.3, 0.5)):
        x = sampled(Dpmpp2mSde.make({"steps": 150, "eta": eta}), model, count)
        assert abs(float(x.mean()) - 0.3) < 4 * 0.5 / count**0.5
        assert abs(float(x.std()) / 0.5 - 1) < 0.02


def test_an_estimate_that_is_no_mean_is_refused():
    model = Exact()
    model.meaning = "transport"
    with pytest.raises(GencliError, match="transport"):
        sampled(Dpmpp2mSde.make({"steps": 3}), model)
