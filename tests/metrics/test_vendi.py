"""The Vendi score: its two ends, the definition, what it counts."""

import numpy as np
import pytest

from gencli.metrics._base import FeatureSet
from gencli.metrics.vendi import Vendi, diversity


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def draws(n, d, seed):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize(("n", "d"), [(9, 40), (9, 9), (60, 9)])
def test_equal_items_score_one_and_items_at_right_angles_their_number(n, d):
    assert diversity(unit(np.tile(draws(1, d, 0), (n, 1)))) == pytest.approx(1, abs=1e-9)
    turned = np.linalg.qr(draws(d, d, 1))[0][:9]
    assert diversity(np.resize(turned, (n, d))[: n // 9 * 9]) == pytest.approx(9, rel=1e-9)


@pytest.mark.parametrize("shape", [(30, 12), (12, 30)])
def test_it_is_the_exponential_of_the_entropy_of_the_kernels_eigenvalues(shape):
    x = draws(*shape, 0)
    kernel = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in x] for a in x]) / len(x)
    values = np.linalg.eigvals(kernel).real
    values = values[values > 1e-12]
    assert diversity(unit(x)) == pytest.approx(np.prod(values**-values), rel=1e-9)


def test_copies_add_nothing_and_an_uneven_mixture_counts_less():
    x = unit(draws(20, 32, 0))
    assert diversity(np.repeat(x, 3, 0)) == pytest.approx(diversity(x), rel=1e-9)
    axes = np.eye(4)
    assert diversity(axes[[0] * 7 + [1, 2, 3]]) < diversity(axes[[0, 1, 2, 3] * 3]) == pytest.approx(4)


def test_the_value_says_the_references_and_its_interval_contains_it():
    real, fake = FeatureSet(draws(200, 16, 0), "f", "abc"), FeatureSet(1 + draws(150, 16, 1), "f", "abc")
    value = Vendi.make()(real, fake)
    assert value.value == pytest.approx(diversity(unit(fake.x))) and value.n == 150 and value.better == "higher"
    assert value.facts["reference_score"] == pytest.approx(diversity(unit(real.x)))
    assert value.name == "vendi[f]" and "diversity only; 200 real items have" in value.note
    assert 1 <= value.interval[0] < value.value < value.interval[1]
