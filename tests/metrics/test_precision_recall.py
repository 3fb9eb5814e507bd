"""Precision and recall by k-nearest-neighbour balls."""

import numpy as np
import pytest
import torch

from gencli.errors import GencliError
from gencli.metrics._balls import neighbours, reach, reach_among
from gencli.metrics._base import FeatureSet
from gencli.metrics._interval import around, around_share, halves
from gencli.metrics._torchvision import import_torchvision
from gencli.metrics.density_coverage import DensityCoverage, density_coverage
from gencli.metrics.precision_recall import PrecisionRecall, distances, precision_recall


def draws(n, seed, d=4):
    return np.random.default_rng(seed).standard_normal((n, d))


def test_equal_sets_give_one_and_one_and_far_sets_nothing():
    x = draws(200, 0)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, draws(200, 1) + 100) == (0.0, 0.0)


def test_one_mode_of_two_has_full_precision_and_half_recall():
    low, high = draws(400, 0), draws(400, 1) + 30
    precision, recall = precision_recall(np.concatenate([low, high]), draws(400, 2))
    assert precision > 0.9 and recall == pytest.approx(0.5, abs=0.05)


def test_a_collapsed_generator_is_precise_and_covers_little():
    x = draws(400, 0)
    precision, recall = precision_recall(x, 0.05 * draws(400, 1))
    assert precision > 0.95 and recall < 0.1


def test_swapping_the_sets_swaps_the_pair():
    x, y = draws(150, 0), 1.5 * draws(120, 1)
    assert precision_recall(x, y) == precision_recall(y, x)[::-1]


def test_torch_fidelity_computes_the_same():
    import_torchvision()
    theirs = pytest.importorskip("torch_fidelity.metric_prc").calculate_precision_recall_full
    x, y = draws(300, 0), 0.3 + 1.3 * draws(250, 1)
    assert precision_recall(x, y) == pytest.approx(theirs(torch.tensor(y), torch.tensor(x)), abs=1e-6)


@pytest.mark.parametrize("lumps", [False, True])
def test_balls_in_a_part_are_those_of_the_items_that_are_left(lumps):
    x = draws(130, 0)
    kept = np.sort(np.random.default_rng(1).permutation(130)[:65])
    if lumps:  # of most items more nearest neighbours are left out than are looked up
        x = np.repeat(100.0 * np.arange(2)[:, None], 65, 0) + 1e-3 * draws(130, 1)
        kept = np.concatenate([np.arange(6), np.arange(65, 124)])
    within = distances(x, x)
    found = reach_among(within, neighbours(within, 4), 4, kept)
    assert np.array_equal(found, reach(within[np.ix_(kept, kept)], 4))


@pytest.mark.parametrize(
    ("metric", "value"), [(PrecisionRecall, precision_recall), (DensityCoverage, density_coverage)]
)
def test_the_interval_is_that_of_halves(metric, value):
    x, y = draws(120, 0), 0.3 + 1.2 * draws(90, 1)
    made = metric.make()(FeatureSet(x, "f"), FeatureSet(y, "f"))
    variance = halves(lambda a, b: value(x[a], y[b]), 120, 90)
    for i, (found, n) in enumerate(zip(made, (90, 120) if metric is PrecisionRecall else (None, 120), strict=True)):
        expected = around(found.value, variance[i], 0.0) if n is None else around_share(found.value, variance[i], n)
        assert found.interval == pytest.approx(expected, abs=1e-9)
        assert found.interval[0] < found.value < found.interval[1]


def test_blocks_of_rows_change_no_distance():
    x, y = draws(130, 0), draws(70, 1)
    direct = np.linalg.norm(x[:, None] - y[None], axis=2)
    assert np.allclose(distances(x, y, rows=17), direct, atol=1e-10)
    assert np.allclose(distances(x, y), direct, atol=1e-10)


def test_both_values_have_names_and_intervals_that_contain_them():
    made = PrecisionRecall.make()(FeatureSet(draws(200, 0), "f"), FeatureSet(1.2 * draws(200, 1), "f"))
    assert [value.name for value in made] == ["precision[f]", "recall[f]"]
    assert all(0 <= v.interval[0] <= v.value <= v.interval[1] <= 1 for v in made)


def test_too_few_items_are_refused():
    with pytest.raises(GencliError, match="at least 5"):
        PrecisionRecall.make()(FeatureSet(draws(4, 0), "f"), FeatureSet(draws(9, 0), "f"))
