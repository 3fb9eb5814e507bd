"""The forward SDEs' closed forms against their Euler–Maruyama discretisation, DDPM's betas and figures of the official code."""

import math

import pytest
import torch

from gencli.models.diffusion import _schedules as schedules
from gencli.samplers import _sdes as sdes

LOW, HIGH = 0.01, 50.0


def number(f, t, *rest):
    return float(f(torch.tensor(t, dtype=torch.float64), *rest))


def std(process, t):
    """Of x_t given x_0, in the SDE's own coordinates."""
    if process == "ve":
        return number(sdes.ve_sigma, t, LOW, HIGH)
    sigma = number(sdes.vp_sigma if process == "vp" else sdes.subvp_sigma, t)
    return sigma * math.sqrt(number(sdes.vp_alpha_bar, t))


def drift_and_g2(process, t):
    if process == "ve":
        return 0.0, 2 * math.log(HIGH / LOW) * std("ve", t) ** 2
    rate = number(sdes.beta, t)
    return -rate / 2, rate * (1 if process == "vp" else 1 - math.exp(-2 * number(sdes.spent, t)))


@pytest.mark.parametrize("process", ["vp", "subvp", "ve"])
def test_euler_maruyama_with_10000_steps_has_the_closed_forms_mean_and_spread(process):
    """The moments of the discretisation are followed exactly, since each step is affine in x."""
    steps = 10_000
    mean, variance = 1.0, (LOW**2 if process == "ve" else 0.0)
    for i in range(steps):
        t = i / steps
        drift, g2 = drift_and_g2(process, t)
        mean, variance = mean * (1 + drift / steps), variance * (1 + drift / steps) ** 2 + g2 / steps
        if i + 1 in (steps // 10, steps // 2, steps):
            expected = 1.0 if process == "ve" else math.sqrt(number(sdes.vp_alpha_bar, (i + 1) / steps))
            assert mean == pytest.approx(expected, rel=0.01)
            assert math.sqrt(variance) == pytest.approx(std(process, (i + 1) / steps), rel=0.01)


def test_simulated_paths_have_the_closed_forms_spread():
    steps, count = 1000, 4000
    noise = torch.Generator().manual_seed(0)
    for process in ("vp", "subvp", "ve"):
        x = torch.full((count,), 0.5) + (LOW if process == "ve" else 0.0) * torch.randn(count, generator=noise)
        for i in range(steps):
            drift, g2 = drift_and_g2(process, (i + 0.5) / steps)
            x = x * (1 + drift / steps) + math.sqrt(g2 / steps) * torch.randn(count, generator=noise)
        assert float(x.std()) == pytest.approx(std(process, 1.0), rel=4 / math.sqrt(2 * count))


def test_vp_ends_with_the_share_of_data_that_the_paper_has():
    assert number(sdes.vp_alpha_bar, 1.0) == pytest.approx(4.32e-5, rel=1e-3)
    assert number(sdes.vp_alpha_bar, 0.0) == 1 and number(sdes.vp_sigma, 0.0) == 0


def test_ddpms_betas_are_the_discretisation_of_vp_in_1000_steps():
    grid = torch.linspace(0, 1, 1000, dtype=torch.float64)
    table = schedules.linear(1000)
    betas = 1 - table / torch.cat([table.new_ones(1), table[:-1]])
    assert (sdes.beta(grid) / 1000 - betas).abs().max() < 1e-12
    closed = sdes.vp_alpha_bar(torch.arange(1, 1001) / 1000)
    assert (closed.sqrt() - table.sqrt()).abs().max() < 1e-3


@pytest.mark.parametrize(
    ("t", "mean", "vp", "subvp"),
    [
        (1e-3, 0.9999450265110976, 0.010485416335095232, 0.00010994395572028193),
        (0.5, 0.2811828807967524, 0.9596542020680363, 0.9209361875468394),
        (1.0, 0.006571586494929619, 0.9999784068923386, 0.9999568142509396),
    ],
)
def test_mean_and_spread_are_those_of_the_official_code(t, mean, vp, subvp):
    assert math.sqrt(number(sdes.vp_alpha_bar, t)) == pytest.approx(mean, rel=1e-5)
    assert std("vp", t) == pytest.approx(vp, rel=1e-4)
    assert std("subvp", t) == pytest.approx(subvp, rel=1e-3)


def test_ve_is_geometric_between_its_ends():
    t = torch.tensor([0, 1e-3, 0.5, 1], dtype=torch.float64)
    expected = torch.tensor([0.01, 0.01 * 5000**0.001, math.sqrt(0.5), 50], dtype=torch.float64)
    assert torch.allclose(sdes.ve_sigma(t, LOW, HIGH), expected, rtol=1e-12)


def test_sub_vp_never_has_more_variance_than_vp():
    t = torch.linspace(1e-4, 1, 1000, dtype=torch.float64)
    scale = sdes.vp_alpha_bar(t)
    assert (scale * sdes.subvp_sigma(t) ** 2 < scale * sdes.vp_sigma(t) ** 2).all()


def test_sub_vps_sigma_and_alpha_are_one_curve():
    t = torch.linspace(1e-3, 1, 100, dtype=torch.float64)
    alpha = sdes.vp_alpha_bar(t).sqrt()
    assert torch.allclose(sdes.subvp_sigma(t), (1 - alpha**2) / alpha, rtol=1e-10)
    assert torch.allclose(sdes.subvp_alpha(sdes.subvp_sigma(t)), alpha, rtol=1e-10)


def test_times_are_the_inverses_of_levels_from_the_least_to_the_greatest():
    t = torch.logspace(-5, 0, 200, dtype=torch.float64)
    assert torch.allclose(sdes.vp_time(sdes.vp_sigma(t)), t, rtol=1e-9)
    assert torch.allclose(sdes.subvp_time(sdes.subvp_sigma(t)), t, rtol=1e-9)
    assert torch.allclose(sdes.ve_time(sdes.ve_sigma(t, LOW, HIGH), LOW, HIGH), t, rtol=1e-9)
    for low, high in ((0.5, 3.0), (0.1, 20.0)):
        assert torch.allclose(sdes.vp_time(sdes.vp_sigma(t, low, high), low, high), t, rtol=1e-9)
