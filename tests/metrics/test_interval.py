"""The jackknife interval: contains its estimate, covers what it should, on Gaussian draws."""

import numpy as np
import pytest

from gencli.metrics import _interval
from gencli.metrics._base import FeatureSet
from gencli.metrics._interval import around_share, assign, from_replicates, halves, jackknife
from gencli.metrics._shares import wilson
from gencli.metrics.density_coverage import DensityCoverage, density_coverage
from gencli.metrics.fid import distance
from gencli.metrics.kl import Kl
from gencli.metrics.precision_recall import PrecisionRecall


def coverage(statistic, draw, repeats, n, seed=0):
    """Share of intervals that hold the statistic's mean over draws, and whether all held their own estimate."""
    rng = np.random.default_rng(seed)
    estimates, intervals = [], []
    for _ in range(repeats):
        real, fake = draw(rng, n)
        estimate = statistic(real, fake)
        made = jackknife(lambda r, f, real=real, fake=fake: statistic(real[r], fake[f]), n, n)
        estimates.append(estimate)
        intervals.append(from_replicates(estimate, made))
    low, high = np.array(intervals).T
    centre = np.mean(estimates)
    inside = (low <= np.array(estimates)) & (np.array(estimates) <= high)
    return float(((low <= centre) & (centre <= high)).mean()), bool(inside.all())


def gaussians(d, shift, spread):
    return lambda rng, n: (rng.standard_normal((n, d)), shift + spread * rng.standard_normal((n, d)))


def test_the_interval_of_a_frechet_distance_covers_on_gaussian_draws():
    share, inside = coverage(distance, gaussians(2, 0.5, 1.3), repeats=300, n=100)
    assert inside and 0.92 <= share <= 0.98


def test_the_interval_of_a_difference_of_means_covers_on_gaussian_draws():
    share, inside = coverage(lambda r, f: float(f.mean() - r.mean()), gaussians(1, 0.2, 1), repeats=1000, n=100)
    assert inside and 0.92 <= share <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize(("d", "n"), [(4, 200), (16, 500)])
def test_the_interval_covers_in_more_dimensions(d, n):
    share, inside = coverage(distance, gaussians(d, 0.3, 1.2), repeats=1500, n=n)
    assert inside and 0.92 <= share <= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 8])
def test_the_intervals_of_neighbours_cover_on_gaussian_draws(d):
    draw = gaussians(d, 0.5, 1.3) if d == 2 else gaussians(d, 0.3, 1.2)
    rng, made = np.random.default_rng(1 if d == 2 else 0), []
    for _ in range(400 if d == 2 else 200):
        real, fake = (FeatureSet(x, "f") for x in draw(rng, 100))
        made.append(
            [
                (v.value, *v.interval)
                for metric in (PrecisionRecall, DensityCoverage, Kl)
                for v in metric.make()(real, fake)
            ]
        )
    value, low, high = np.moveaxis(np.array(made), 2, 0)
    assert (low <= value).all() and (value <= high).all()
    share = ((low <= value.mean(0)) & (value.mean(0) <= high)).mean(0)
    assert (share >= 0.92).all() and (share <= 0.98).all(), share


def test_halves_know_the_variance_of_a_mean_and_of_neighbours_which_the_jackknife_does_not():
    rng = np.random.default_rng(0)
    mean = [halves(lambda a, b, x=x: x[a].mean() - x[b].mean(), 200, 200) for x in rng.standard_normal((100, 200))]
    assert np.mean(mean) == pytest.approx(2 / 200, rel=0.1)

    found, by_halves, by_groups = [], [], []
    for _ in range(120):
        x, y = rng.standard_normal((2, 100, 4))
        found.append(density_coverage(x, y)[1])
        by_halves.append(halves(lambda a, b, x=x, y=y: density_coverage(x[a], y[b])[1], 100, 100))
        by_groups.append(
            np.ptp(from_replicates(0, jackknife(lambda a, b, x=x, y=y: density_coverage(x[a], y[b])[1], 100, 100)))
        )
    spread = np.std(found)
    assert 0.8 < np.sqrt(np.mean(by_halves)) / spread < 1.25
    assert np.sqrt(np.mean(np.square(by_groups))) / (2 * _interval.T_975) > 1.25 * spread


@pytest.mark.parametrize("share", [0.0, 1.0, 0.01])
def test_a_share_without_spread_has_wilson_s_interval(share):
    assert around_share(share, 0.0, 100) == pytest.approx(wilson(100 * share, 100, _interval.T_SPLITS)[1])
    low, high = around_share(share, 0.01, 100)
    assert 0 <= low <= share <= high <= 1 and high - low > 0.3


def test_the_spread_of_a_mean_is_its_standard_error():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(2500)
    made = jackknife(lambda r, f: float(x[f].mean()), 2500, 2500)
    half = from_replicates(0, made)[1] / _interval.T_975
    assert half == pytest.approx(1 / 50, rel=0.35)  # 24 degrees of freedom


def test_bounds_cut_the_interval():
    wide = np.linspace(-1, 1, 25)
    assert from_replicates(0.1, wide, low=0.0, high=1.0) == (0.0, 1.0)


def test_groups_are_equal_random_and_repeatable():
    groups = assign(103)
    assert sorted(np.bincount(groups)) == [4] * 22 + [5] * 3
    assert np.array_equal(groups, assign(103))
    assert not np.array_equal(groups, np.arange(103) % 25)


def test_too_few_items_give_no_interval():
    assert jackknife(lambda r, f: 0.0, 49, 1000) is None
