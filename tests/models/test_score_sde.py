"""Score SDEs: what networks see and are told, official parameter counts."""

import pytest
import torch
from diffused import CIFAR, NET, SPEC, Told, counted

from gencli.core import Rng
from gencli.errors import GencliError
from gencli.models.diffusion.score_sde import ScoreSde


@pytest.mark.parametrize(
    ("name", "trained"),
    [
        ("score-sde-cifar10", 61_804_419),
        ("score-sde-ncsnpp-cifar10", 62_758_787),
        ("rectified-flow-cifar10", 61_804_419),
    ],
)
def test_parameter_counts_are_the_official_ones(name, trained):
    assert counted(name, CIFAR)[0] == trained


@pytest.mark.parametrize("sde", ["vp", "sub-vp", "ve"])
def test_the_network_sees_the_sdes_own_variable_and_time(sde):
    """x_t = α x_0 + s n of the SDE is what the network sees; its target is minus the noise (ve) or the noise."""
    model = ScoreSde.make({"net": NET, "sde": sde}, SPEC)
    model.net = Told(lambda x, level, **cond: torch.zeros_like(x), torch.float64)
    t = torch.tensor([0.01, 0.3, 0.9], dtype=torch.float64)
    integral = 0.1 * t + (20 - 0.1) / 2 * t**2
    alpha = {"ve": torch.ones(3, dtype=torch.float64)}.get(sde, (-integral / 2).exp())
    spread = {"vp": (1 - alpha**2).sqrt(), "sub-vp": 1 - alpha**2, "ve": 0.01 * 5000**t}[sde]
    data, noise = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = spread / alpha
    model.denoise(data + sigma.reshape(-1, 1, 1, 1) * noise, sigma)
    seen, level, _ = model.net.asked
    wide = (-1, 1, 1, 1)
    assert torch.allclose(seen, alpha.reshape(wide) * data + spread.reshape(wide) * noise, rtol=1e-9)
    assert torch.allclose(level, {"ve": (spread / 2).log()}.get(sde, 999 * t), rtol=1e-9)
    target = model.formulation.target(data, noise, sigma)
    assert torch.allclose(target, -noise if sde == "ve" else noise, rtol=1e-9)


@pytest.mark.parametrize("sde", ["vp", "sub-vp", "ve"])
def test_levels_in_time_and_ends(sde):
    model = ScoreSde.make({"net": NET, "sde": sde}, SPEC)
    u = torch.linspace(0.001, 1, 50, dtype=torch.float64)
    assert (model.sigma_at(u).diff() > 0).all()
    assert float(model.sigma_at(u)[-1]) == pytest.approx(model.sigma_max, rel=1e-12)
    drawn = model.draw_sigma(1000, Rng.batch(0, total=1000))
    assert float(drawn.min()) > 0 and float(drawn.max()) <= model.sigma_max * (1 + 1e-9)
    noise = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    scale = float((model.start(noise, torch.tensor(model.sigma_max)) / noise).mean())
    assert scale == pytest.approx(model.sigma_max if sde == "ve" else (1 + model.sigma_max**2) ** 0.5, rel=1e-6)


def test_ends_in_the_wrong_order_are_refused():
    with pytest.raises(GencliError, match="sigma_min 60"):
        ScoreSde.make({"net": NET, "sde": "ve", "sigma_min": 60.0}, SPEC)
