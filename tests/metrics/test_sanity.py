"""Laws of every metric of samples, over the registry: a new one is tested without touching this file, or says its exception."""

import inspect
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from evidence import bundled, digits

from gencli import registry
from gencli.errors import GencliError
from gencli.metrics._base import FeatureSet, SampleMetric
from gencli.metrics._interval import T_975
from gencli.metrics.cmmd import Cmmd
from gencli.metrics.fid import Fid
from gencli.metrics.inception_score import InceptionScore
from gencli.metrics.kid import Kid
from gencli.metrics.mmd import Mmd
from gencli.metrics.vendi import Vendi
from gencli.metrics.wasserstein import Wasserstein

D, CLASSES = 4, 6
NAMES = [
    name
    for name in registry.entries("metrics")
    if issubclass(cls := registry.load("metrics", name), SampleMetric) and not inspect.isabstract(cls)
]
FIXED = {"mmd": {"bandwidth": 2.0}}  # else the reference decides
SYMMETRIC = {"fid", "kid", "cmmd", "mmd", "wasserstein", "fid-infinity", "js"}
SWAPPED = {"precision": "recall", "recall": "precision", "kl": "reverse-kl", "reverse-kl": "kl"}
OF_SAMPLES = {"inception-score", "vendi"}  # the reference is only told
OF_BALLS = {"density", "coverage"}  # of the reference: no law of swapping
SUBSETS = {"inception-score", "kid", "fid-infinity"}  # seeded by place, so another order is another estimate
DISTANCES = SYMMETRIC | {"kl", "reverse-kl"}
COSINES = {"cmmd", "vendi"}  # know directions only
FIDELITY = {"precision", "density", "coverage", "recall"}


def head(x):
    """A stand-in for a classifier's last layer: directions of the plane."""
    return 3 * x[:, :2] @ np.array([[np.cos(a), np.sin(a)] for a in np.arange(CLASSES) * 2 * np.pi / CLASSES]).T


def features(x):
    return FeatureSet(x, "f", "abc", head=head)


@cache
def draws(n, seed, shift=0.0, spread=1.0):
    return shift + spread * np.random.default_rng(seed).standard_normal((n, D))


def measured(name, real, fake, **settings):
    """Values by name without brackets; the sliced distance by its file's."""
    made = registry.load("metrics", name).make({**FIXED.get(name, {}), **settings})(features(real), features(fake))
    values = made if isinstance(made, list) else [made]
    return {v.name.split("[")[0].replace("sliced-w2", "wasserstein"): v for v in values}


@cache
def usual(name):
    return measured(name, draws(200, 0), draws(150, 1, 0.3, 1.1))


def test_every_metric_of_samples_is_here_and_falls_under_laws():
    assert {"fid", "kid", "precision-recall", "inception-score", "density-coverage", "fid-infinity"} <= {*NAMES}
    made = {value for name in NAMES for value in usual(name)}
    assert made == SYMMETRIC | {*SWAPPED} | OF_SAMPLES | OF_BALLS


@pytest.mark.parametrize("name", NAMES)
def test_a_value_says_features_number_interval_and_facts(name):
    for value in usual(name).values():
        assert value.name.endswith("[f]") and np.isfinite(value.value)
        low, high = value.interval
        assert low <= value.value <= high and low < high
        assert value.n == 150 and value.facts["n_real"] in (150, 200) and value.facts["fingerprint"] == "abc"
        assert value.better in ("lower", "higher")


@pytest.mark.parametrize("name", NAMES)
def test_swapping_the_sets(name):
    x, y = draws(150, 0), draws(150, 1, 0.3, 1.1)
    first, second = measured(name, x, y), measured(name, y, x)
    for key, value in first.items():
        swapped = second[SWAPPED.get(key, key)]
        if key in OF_SAMPLES:
            alone = measured(name, draws(150, 7), x)[key]
            assert swapped.value == alone.value == pytest.approx(value.facts["reference_score"])
            assert swapped.value != pytest.approx(value.value)
        elif key in SUBSETS:
            assert swapped.value == pytest.approx(value.value, abs=value.interval[1] - value.value)
        elif key in OF_BALLS:
            assert swapped.value != pytest.approx(value.value, rel=1e-3)
        else:
            assert swapped.value == pytest.approx(value.value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_two_equal_sets_are_the_best_or_near_it(name):
    x = draws(200, 0)
    try:
        made = measured(name, x, x.copy())
    except GencliError as error:
        assert name == "kl" and "no density" in error.message  # each item's neighbour is its copy
        return
    worse = measured(name, x, draws(200, 1, 1.0))
    for key, value in made.items():
        if key in FIDELITY:
            assert value.value == 1
        elif key in OF_SAMPLES:
            assert value.value == pytest.approx(value.facts["reference_score"], rel=1e-9)
        elif key in ("kid", "mmd", "cmmd", "fid-infinity"):  # without bias: at or a little below 0
            assert -0.2 * worse[key].value < value.value <= 1e-9
        else:
            assert abs(value.value) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_a_collapsed_generator_has_high_fidelity_and_low_diversity(name):
    real = draws(300, 0)
    mode = 2.0 if name in COSINES else 0.0  # at the origin a spot has all directions
    good, collapsed = measured(name, real, draws(200, 1)), measured(name, real, draws(200, 2, mode, 0.03))
    for key, value in collapsed.items():
        if key in ("precision", "density"):
            assert value.value > 0.95
        elif key in ("recall", "coverage"):
            assert value.value < 0.1 < 0.5 < good[key].value
        elif key in OF_SAMPLES:
            assert value.value < 1.1 < 0.6 * good[key].value
        else:
            assert value.interval[0] > good[key].value


@pytest.mark.parametrize("name", NAMES)
def test_noise_takes_every_distance_up_and_fidelity_down(name):
    real, clean, noise = draws(300, 0), draws(200, 1), draws(200, 3)
    levels = [measured(name, real, clean + sigma * noise) for sigma in (0.0, 0.6, 1.2, 2.4)]
    for key in levels[0]:
        found = [level[key].value for level in levels]
        if key in DISTANCES - COSINES:
            assert all(a < b for a, b in pairwise(found)), f"{key}: {found}"
        elif key in ("precision", "density"):
            assert all(a > b for a, b in pairwise(found)), f"{key}: {found}"


@pytest.mark.parametrize("name", NAMES)
def test_order_of_items_changes_nothing(name):
    x, y = draws(200, 0), draws(150, 1, 0.3, 1.1)
    other = measured(name, x[::-1], np.random.default_rng(5).permutation(y))
    for key, value in usual(name).items():
        within = value.interval[1] - value.value if key in SUBSETS else 1e-9
        if key == "js":
            within = 0.05  # which items of the larger set are left out
        assert other[key].value == pytest.approx(value.value, abs=within)


@pytest.mark.parametrize("name", NAMES)
def test_other_features_and_too_few_items_are_refused(name):
    metric = registry.load("metrics", name).make()
    with pytest.raises(GencliError, match="features differ"):
        metric(features(draws(100, 0)), FeatureSet(draws(100, 1), "g", "abc", head=head))
    with pytest.raises(GencliError, match="at least"):
        metric(features(draws(100, 0)), features(draws(1, 1)))


# ------------------------------------------------------------------------------------------------------------------- images


@cache
def images(damage, size):
    """Bundled features of digits, damaged by noise of that many grey levels, extracted `size` at a time."""
    x = digits().split("train").batch(torch.arange(240))["x"]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    parts = (x + damage * noise).clamp(0, 255).round().to(torch.uint8).split(size)
    return bundled().extract(parts)


@pytest.mark.parametrize("name", [n for n in NAMES if "image" in registry.load("metrics", n).kinds])
def test_the_size_of_a_batch_is_irrelevant(name):
    settings = {"splits": 2} if name == "inception-score" else {}
    metric = registry.load("metrics", name).make(settings)
    real = FeatureSet(images(0, 64).x[:, :40], "f", head=lambda x: x)  # 240 items are few for 64 features
    made = []
    for size in (240, 7):
        value = metric(real, FeatureSet(images(60, size).x[:, :40], "f", head=lambda x: x))
        made.append([v.value for v in (value if isinstance(value, list) else [value])])
    assert made[0] == pytest.approx(made[1], rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["fid", "kid", "cmmd", "mmd", "wasserstein"])
def test_noise_on_images_takes_their_distances_up(name):
    metric = registry.load("metrics", name).make()
    found = [metric(images(0, 64), images(damage, 64)).value for damage in (10, 30, 60, 120)]
    assert all(a < b for a, b in pairwise(found))


def test_the_kid_of_two_real_halves_is_within_two_errors_of_zero():
    x = images(0, 64)
    halves = np.random.default_rng(1).permutation(240).reshape(2, 120)
    value = Kid.make()(*(FeatureSet(x.x[rows], "f") for rows in halves))
    assert abs(value.value) < 2 * (value.interval[1] - value.value) / T_975


# ----------------------------------------------------------------------------------------------------------------- coverage


def coverage(metric, repeats, n):
    """Share of intervals that hold the mean over draws of N(−1, I) and N(1, 1.1² I) in eight dimensions."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(repeats):
        real, fake = rng.standard_normal((n, 8)) - 1, 1.1 * rng.standard_normal((n, 8)) + 1
        made.append(metric(features(real), features(fake)))
    centre = np.mean([value.value for value in made])
    return float(np.mean([low <= centre <= high for low, high in (value.interval for value in made)]))


COVERED = {
    "fid": Fid.make(),
    "kid": Kid.make(),
    "mmd": Mmd.make({"bandwidth": 1.5}),
    "cmmd": Cmmd.make(),
    "vendi": Vendi.make(),
    "inception-score": InceptionScore.make(),
    "wasserstein": Wasserstein.make(),
}


@pytest.mark.parametrize("name", ["fid", "mmd", "vendi"])
def test_intervals_cover_on_gaussian_draws_in_brief(name):
    assert coverage(COVERED[name], 60, 60) >= 0.88  # 95 % less 2.5 errors of 60 draws


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_intervals_cover_on_two_hundred_gaussian_draws(name):
    assert 0.92 <= coverage(COVERED[name], 200, 150) <= 0.98
