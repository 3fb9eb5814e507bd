"""Density and coverage: the authors' values, the ends, and what they were made to be robust against."""

import contextlib
import io

import numpy as np
import pytest

from gencli.errors import GencliError
from gencli.metrics._base import FeatureSet
from gencli.metrics.density_coverage import DensityCoverage, density_coverage
from gencli.metrics.precision_recall import precision_recall


def draws(n, seed, d=4):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize("k", [1, 5])
def test_the_authors_package_computes_the_same(k):
    prdc = pytest.importorskip("prdc")
    x, y = draws(300, 0), 0.3 + 1.2 * draws(250, 1)
    with contextlib.redirect_stdout(io.StringIO()):
        found = prdc.compute_prdc(x, y, k)
    assert density_coverage(x, y, k) == pytest.approx((found["density"], found["coverage"]), abs=1e-12)


def test_equal_sets_give_one_and_one_and_far_sets_nothing():
    x = draws(200, 0)
    assert density_coverage(x, x) == (1.0, 1.0)
    assert density_coverage(x, draws(200, 1) + 100) == (0.0, 0.0)


@pytest.mark.parametrize("k", [2, 5])
def test_equal_distributions_have_the_expected_values(k):
    found = np.array([density_coverage(draws(300, 2 * s, 2), draws(300, 2 * s + 1, 2), k) for s in range(40)])
    error = found.std(0, ddof=1) / np.sqrt(40)
    assert (abs(found.mean(0) - [1, 1 - 2.0**-k]) < 3 * error + 0.005).all()


def test_one_far_real_item_does_not_make_bad_samples_good():
    real = np.concatenate([draws(300, 0), np.full((1, 4), 30.0)])
    between = 6 + draws(200, 1)
    assert precision_recall(real, between)[0] > 0.9
    density, coverage = density_coverage(real, between)
    assert density < 0.25 and coverage < 0.05


def test_a_collapsed_generator_is_dense_and_covers_little():
    density, coverage = density_coverage(draws(400, 0), 0.05 * draws(400, 1))
    assert density > 1 and coverage < 0.1


def test_both_values_have_names():
    made = DensityCoverage.make()(FeatureSet(draws(200, 0), "f"), FeatureSet(1.2 * draws(150, 1), "f"))
    assert [(v.name, v.n, v.better) for v in made] == [("density[f]", 150, "higher"), ("coverage[f]", 150, "higher")]


def test_too_few_items_are_refused():
    with pytest.raises(GencliError, match="at least 7"):
        DensityCoverage.make()(FeatureSet(draws(6, 0), "f"), FeatureSet(draws(9, 0), "f"))
