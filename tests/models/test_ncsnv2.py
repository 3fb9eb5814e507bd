"""NCSNv2: the five techniques."""

import math

import pytest
import torch

from gencli import recipe
from gencli.bundle import Run
from gencli.config import choose
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.diffusion.ncsnv2 import Ncsnv2, count, overlap, step_size, variance_ratio
from gencli.samplers.annealed_langevin import AnnealedLangevin

NET = {"name": "unet", "width": 4, "mults": (1,), "blocks": 1, "attention": ()}
IMAGE = Spec(Field("image", (1, 4, 4), vocab=256, range=(0.0, 1.0)))
OFFICIAL = [  # σ_1, L, T, ε, side
    (50, 232, 5, 6.2e-6, 32),
    (90, 500, 5, 3.3e-6, 64),
    (190, 1086, 3, 1.8e-6, 128),
    (348, 2311, 3, 9e-7, 256),
]


def shaken(**settings):
    model = Ncsnv2.make({"net": NET, **settings}, IMAGE)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    return model.eval()


def test_the_first_level_is_the_largest_distance_between_items():
    model = shaken()
    data = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    batches = iter([{"x": data[:20]}, {"x": data[20:]}, {"x": data}])
    model.initialise(batches, 30, Rng.batch(0, total=1))
    largest = max(float((a - b).norm()) for a in data for b in data)
    assert float(model.levels[0]) == pytest.approx(largest, rel=1e-6) and float(model.levels[-1]) == 0.01
    again = shaken(sigma_begin=3.0)
    again.initialise(iter([{"x": data}] * 2), 30, Rng.batch(0, total=1))
    assert float(again.levels[0]) == 3.0, "what was asked for is not measured"


def test_the_measured_ladder_is_loaded_with_the_weights():
    model, other = shaken(), shaken()
    model.widest.fill_(7.5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.levels, model.levels) and float(other.levels[0]) == 7.5
    assert len(other.levels) == count(7.5, 0.01, 16)


def test_the_ratio_of_the_official_ladder_and_its_overlap():
    for begin, levels, _, _, side in OFFICIAL:
        ratio = (begin / 0.01) ** (1 / (levels - 1))
        assert overlap(ratio, 3 * side**2) == pytest.approx(0.57, abs=0.005)
    assert pytest.approx(1.0376, abs=5e-5) == (50 / 0.01) ** (1 / 231)


def test_the_ladder_overlaps_by_half_or_more_with_the_fewest_levels():
    for dim in (64, 256, 3072):
        levels = count(20.0, 0.01, dim)
        assert overlap((20 / 0.01) ** (1 / (levels - 1)), dim) >= 0.5 > overlap((20 / 0.01) ** (1 / (levels - 2)), dim)
    assert count(4.0, 0.01, 2) == 10, "in the plane any ratio overlaps"


def test_the_score_at_twice_the_level_is_half():
    """Of one x: the network is not told the level."""
    model = shaken()
    x = torch.rand(5, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sigma in (0.02, 0.3, 4.0):
        once, twice = ((model.denoise(x, torch.tensor(s)) - x) / s**2 for s in (sigma, 2 * sigma))
        assert once.abs().min() > 1e-4
        assert torch.allclose(twice, once / 2, rtol=1e-6)


def test_the_step_size_is_the_official_one():
    for begin, levels, inner, epsilon, _ in OFFICIAL:
        ratio = (begin / 0.01) ** (1 / (levels - 1))
        assert step_size(ratio, inner, 0.01) == pytest.approx(epsilon, rel=0.03)


def test_the_variance_ratio_is_that_of_langevin_steps_on_a_gaussian():
    """Of data at one point, whose score is −x/σ², from noise of the level before: the variance by recursion."""
    ratio, inner, eta = 1.3, 4, 0.15
    variance = ratio**2
    for _ in range(inner):
        variance = (1 - eta) ** 2 * variance + 2 * eta
    assert float(variance_ratio(torch.tensor(eta), ratio, inner)) == pytest.approx(variance, rel=1e-6)
    best = step_size(ratio, inner, 1.0)
    tried = [float(variance_ratio(torch.tensor(best * k).double(), ratio, inner)) for k in (0.8, 1.0, 1.25)]
    assert 1 < tried[1] < min(tried[0], tried[2])


def test_it_says_what_its_sampler_should_do():
    model = shaken(sigma_begin=50.0, noise_levels=232)
    sampler = AnnealedLangevin.make(model.langevin)
    assert sampler.config.inner == 5 and sampler.config.step_size / 2 * 0.01**2 == pytest.approx(6.2e-6, rel=0.03)


def test_the_start_is_noise_of_the_first_level():
    model = shaken(sigma_begin=50.0)
    noise = torch.randn(4, 1, 4, 4, dtype=torch.float64)
    assert torch.equal(model.start(noise, model.levels[0]), 50 * noise)


def test_levels_that_do_not_fall_are_refused():
    with pytest.raises(GencliError, match=r"sigma_end 0\.01 is not below sigma_begin 0\.005"):
        shaken(sigma_begin=0.005)


def test_the_cifar10_recipe_is_the_official_network():
    table = recipe.load("ncsnv2-cifar10")
    spec = Spec(Field("image", (3, 32, 32), vocab=256, range=(0.0, 1.0)))
    with torch.device("meta"):
        model = choose("models", table["model"]).build(spec)
    assert sum(p.numel() for p in model.parameters()) == 29_694_083
    sampler = choose("samplers", table["sample"]).build()
    assert sampler.config.step_size / 2 * 0.01**2 == pytest.approx(6.2e-6)
    assert len(sampler.levels(model)) - 1 == 1161 and math.isclose(table["train"]["ema_decay"], 0.999)


def test_a_run_measures_its_ladder_before_the_first_step(tmp_path):
    from tiny import smoke, trained

    loaded = Run.load(trained(tmp_path, smoke("ncsnv2")))
    assert 2.0 < float(loaded.model.levels[0]) < 8.0  # 8×8 digits in [0, 1]
    assert float(loaded.model.widest) != shaken().widest
