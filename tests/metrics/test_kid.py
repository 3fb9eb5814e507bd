"""The kernel distance: unbiased, repeatable, and clean-fid's definition."""

import numpy as np
import pytest
import torch

from gencli.metrics._base import FeatureSet
from gencli.metrics._interval import GROUPS, assign
from gencli.metrics._mmd import over_pairs
from gencli.metrics._torchvision import import_torchvision
from gencli.metrics.kid import Kid, blocked, kernel, mmd2


def draws(n, seed, shift=0.0, d=8):
    return shift + np.random.default_rng(seed).standard_normal((n, d))


def features(x):
    return FeatureSet(x, "gencli-features-v1", "abc")


def test_equal_distributions_average_to_zero_within_three_errors():
    found = np.array([mmd2(draws(60, 2 * s), draws(60, 2 * s + 1)) for s in range(400)])
    error = found.std(ddof=1) / np.sqrt(len(found))
    assert abs(found.mean()) < 3 * error
    assert (found < 0).any()  # an estimate that cannot be negative would be biased


def test_the_kernel_sums_are_those_of_the_definition():
    x, y = draws(7, 0, d=3), draws(5, 1, d=3)
    k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    xx = np.mean([k(x[i], x[j]) for i in range(7) for j in range(7) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(5) for j in range(5) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert mmd2(x, y) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def test_clean_fid_defines_it_so():
    import_torchvision()
    from cleanfid.fid import kernel_distance

    x, y = draws(120, 0), draws(120, 1, shift=0.3)
    assert mmd2(x, y) == pytest.approx(kernel_distance(x, y, num_subsets=1), rel=1e-9)


def test_torch_fidelity_computes_the_same():
    import_torchvision()
    theirs = pytest.importorskip("torch_fidelity.metric_kid").kid_features_to_metric
    x, y = draws(120, 0), draws(120, 1, shift=0.3)
    found = theirs(torch.tensor(x), torch.tensor(y), kid_subsets=1, kid_subset_size=120, verbose=False)
    assert mmd2(x, y) == pytest.approx(found["kernel_inception_distance_mean"], rel=1e-6)


def test_a_second_evaluation_gives_the_same_number():
    real, fake = features(draws(300, 0)), features(draws(250, 1, shift=0.2))
    metric = {"blocks": 10, "block": 100}
    first = Kid.make(metric)(real, fake)
    np.random.seed(1)  # a global seed must not matter
    assert Kid.make(metric)(real, fake) == first
    assert Kid.make({**metric, "seed": 1})(real, fake).value != first.value


def test_subsets_average_to_the_whole():
    x, y = draws(400, 0), draws(400, 1, shift=0.3)
    assert blocked(x, y, 300, 100, seed=0) == pytest.approx(mmd2(x, y), rel=0.05)


def test_replicates_from_group_sums_equal_those_from_the_items():
    x, y = draws(110, 0), draws(90, 1, shift=0.2)
    gx, gy = assign(110, seed=0), assign(90, seed=1)
    expected = [mmd2(x[gx != g], y[gy != g]) for g in range(GROUPS)]
    value, replicates = over_pairs(kernel, x, y)
    assert value == pytest.approx(mmd2(x, y), rel=1e-10) and np.allclose(replicates, expected, rtol=1e-10)


def test_the_interval_contains_the_value_and_misses_zero_for_other_data():
    value = Kid.make()(features(draws(300, 0)), features(draws(300, 1, shift=0.5)))
    assert value.interval[0] < value.value < value.interval[1] and value.interval[0] > 0
    same = Kid.make()(features(draws(300, 0)), features(draws(300, 1)))
    assert same.interval[0] < 0 < same.interval[1]
