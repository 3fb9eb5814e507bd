"""The Fréchet distance: closed forms, clean-fid's own value, laws of a distance."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import linalg

from gencli.errors import GencliError
from gencli.metrics import _frechet
from gencli.metrics._base import FeatureSet
from gencli.metrics._frechet import Statistics, frechet_distance
from gencli.metrics.fid import Fid, distance


def draws(n, d, seed, shift=0.0, spread=1.0):
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(99).standard_normal((d, d)) / np.sqrt(d)
    return shift + spread * rng.standard_normal((n, d)) @ mix


def features(x, name="gencli-features-v1"):
    return FeatureSet(x, name, "abc", "not comparable with Inception FID")


def test_diagonal_gaussians_have_the_closed_form():
    rng = np.random.default_rng(0)
    a, b, m = rng.uniform(0.1, 4, 32), rng.uniform(0.1, 4, 32), rng.standard_normal(32)
    expected = m @ m + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_distance(Statistics(m, np.diag(a), 9), Statistics(np.zeros(32), np.diag(b), 9))
    assert abs(found - expected) < 1e-8


def test_covariances_that_do_not_commute_agree_with_the_general_matrix_root():
    a, b = Statistics.of(draws(500, 12, 0)), Statistics.of(draws(500, 12, 1) @ np.diag(np.arange(1, 13.0)))
    root = linalg.sqrtm(a.cov @ b.cov).real
    gap = a.mean - b.mean
    expected = gap @ gap + np.trace(a.cov + b.cov - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_clean_fid_computes_the_same_distance():
    from gencli.metrics._torchvision import import_torchvision

    import_torchvision()
    import scipy

    if tuple(map(int, scipy.__version__.split(".")[:2])) >= (1, 18):
        pytest.skip("clean-fid calls sqrtm(disp=False), which SciPy 1.18 removes")
    from cleanfid.fid import frechet_distance as theirs

    a, b = Statistics.of(draws(400, 24, 0)), Statistics.of(draws(400, 24, 1, shift=0.3, spread=1.2))
    assert frechet_distance(a, b) == pytest.approx(theirs(a.mean, a.cov, b.mean, b.cov), rel=1e-9)


def test_nothing_of_ours_calls_the_general_matrix_root():
    from pathlib import Path

    root = Path(_frechet.__file__).parents[1]
    assert not [path for path in root.rglob("*.py") if "sqrtm(" in path.read_text(encoding="utf-8")]


def test_equal_sets_are_at_distance_zero_and_arguments_may_swap():
    a, b = draws(300, 16, 0), draws(250, 16, 1, shift=0.2)
    assert distance(a, a) < 1e-9
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-9)
    assert distance(a, b) > 0.1


def test_order_of_items_changes_nothing():
    a, b = draws(300, 16, 0), draws(300, 16, 1)
    assert distance(a[::-1], b) == pytest.approx(distance(a, b), abs=1e-10)


def test_fewer_items_than_features_still_give_a_finite_symmetric_distance():
    a, b = draws(20, 40, 0), draws(20, 40, 1, shift=0.5)
    assert distance(a, a) < 1e-6
    assert distance(a, b) == pytest.approx(distance(b, a), rel=1e-6)
    assert "singular" in Fid.make()(features(a), features(b)).note


def test_the_estimate_falls_with_n_towards_the_true_distance():
    sizes = (50, 200, 800, 3200)
    found = [np.mean([distance(draws(n, 16, s), draws(n, 16, 100 + s)) for s in range(6)]) for n in sizes]
    assert all(low < 0.5 * high for high, low in pairwise(found))


def test_the_estimate_of_known_gaussians_is_within_one_percent():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((60_000, 8)), 1.0 + 2 * rng.standard_normal((60_000, 8))
    assert distance(a, b) == pytest.approx(16, rel=0.01)


def test_statistics_survive_a_file(tmp_path):
    kept = Statistics.of(draws(100, 8, 0))
    kept.save(tmp_path / "reference.npz")
    again = Statistics.load(tmp_path / "reference.npz")
    assert np.array_equal(again.mean, kept.mean) and np.array_equal(again.cov, kept.cov) and again.n == 100
    assert [path.name for path in tmp_path.iterdir()] == ["reference.npz"]


def test_a_damaged_file_of_statistics_is_refused_by_name(tmp_path):
    (tmp_path / "bad.npz").write_bytes(b"not statistics")
    with pytest.raises(GencliError, match=r"bad\.npz"):
        Statistics.load(tmp_path / "bad.npz")


def test_the_result_names_its_features_and_its_interval_contains_it():
    value = Fid.make()(features(draws(200, 8, 0)), features(draws(150, 8, 1, shift=0.3)))
    assert value.name == "fid[gencli-features-v1]" and value.better == "lower" and value.n == 150
    assert value.facts["n_real"] == 200
    low, high = value.interval
    assert 0 <= low < value.value < high


def test_sets_of_different_features_are_refused():
    with pytest.raises(GencliError, match="features differ"):
        Fid.make()(features(draws(60, 8, 0)), features(draws(60, 8, 1), name="random-v1"))


def test_features_that_are_not_finite_are_refused():
    x = draws(60, 8, 0)
    x[3, 2] = np.nan
    with pytest.raises(GencliError, match="1 of 60 items"):
        features(x)
