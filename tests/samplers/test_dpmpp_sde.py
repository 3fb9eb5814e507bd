"""The single-step SDE solver against the midpoint rule, its exact solution and Gaussian data."""

import itertools

import pytest
import torch
from denoisers import POINTS, AnyLevel, Exact, FromEps, even, sampled, walked

from gencli.errors import GencliError
from gencli.samplers.dpmpp_sde import DpmppSde


def test_eta_0_is_the_midpoint_rule_in_log_sigma():
    model, levels = FromEps(), even("logsnr", 5)
    x = start = torch.linspace(-80, 80, 9, dtype=torch.float64)[:, None]
    for here, there in itertools.pairwise(levels):
        found = model.denoise(x, here)
        root = (there / here).sqrt()
        middle = model.denoise(found + root * (x - found), here * root)
        x = middle + root**2 * (x - middle)
    assert (walked(DpmppSde.make({"eta": 0.0}), model.denoise, start, levels)[-1] - x).abs().max() < 1e-10


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_around_a_known_point_both_halves_of_a_step_lie_on_one_path_of_the_sde(eta):
    """The estimate stays as it is: x − D has standard deviation σ, and the covariance of two levels is (s/t)^(1+η) t²."""
    count, seen = 20_000, []
    start = 0.4 + 10 * torch.randn(count, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def denoise(x, sigma):
        seen.append((x - 0.4, float(sigma)))
        return torch.full_like(x, 0.4)

    levels = torch.tensor([10.0, 5.0, 0.8, 0.2, 0.0], dtype=torch.float64)
    assert (walked(DpmppSde.make({"eta": eta}), denoise, start, levels)[-1] - 0.4).abs().max() < 1e-12
    assert len(seen) == 7
    for i, (a, t) in enumerate(seen):
        assert abs(float(a.std()) / t - 1) < 4 / (2 * count) ** 0.5
        for b, s in seen[i + 1 :]:
            assert abs(float((a * b).mean()) / (t * s) - (s / t) ** eta) < 4 / count**0.5


def test_a_step_costs_two_evaluations_and_the_last_one():
    assert DpmppSde.make({"steps": 10}).evaluations(AnyLevel(), POINTS) == 19


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_gaussian_data_get_the_right_mean_and_spread(eta):
    count = 20_000
    for model in (Exact(0.3, 0.5), AnyLevel(0.3, 0.5)):
        x = sampled(DpmppSde.make({"steps": 75, "eta": eta}), model, count)
        assert abs(float(x.mean()) - 0.3) < 4 * 0.5 / count**0.5
        assert abs(float(x.std()) / 0.5 - 1) < 0.02


def test_an_estimate_that_is_no_mean_is_refused():
    model = Exact()
    model.meaning = "transport"
    with pytest.raises(GencliError, match="transport"):
        sampled(DpmppSde.make({"steps": 3}), model)
