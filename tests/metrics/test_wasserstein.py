"""Transport distances along directions."""

import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from gencli.metrics._base import FeatureSet
from gencli.metrics.wasserstein import Wasserstein, sliced


def draws(n, seed, d=1):
    return np.random.default_rng(seed).standard_normal((n, d))


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 37), (8, 12)])
def test_one_dimension_equals_scipy_for_sets_of_any_sizes(n, m):
    x, y = draws(n, 0), 0.4 + draws(m, 1)
    assert sliced(x, y, p=1) == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-10)


def test_point_masses_are_as_far_as_the_points():
    assert sliced(np.full((5, 1), 2.0), np.full((3, 1), -1.5), p=2) == pytest.approx(3.5)


def test_a_shift_costs_its_mean_square_projection():
    x = draws(500, 0, d=2)
    assert sliced(x, x + np.array([3.0, 0.0]), projections=4000) == pytest.approx(3 / np.sqrt(2), rel=0.03)


def test_gaussians_are_as_far_as_the_closed_form_within_three_errors():
    found = np.array([sliced(draws(4000, 2 * s), 1 + 2 * draws(4000, 2 * s + 1)) ** 2 for s in range(30)])
    error = found.std(ddof=1) / np.sqrt(30)
    assert abs(found.mean() - 2) < 3 * error + 0.01  # |μ|² + (σ₁ − σ₂)² = 2, and the bias of 4,000 items


def test_the_cheapest_pairing_is_that_of_sorted_items_on_a_line_and_of_any_order_in_the_plane():
    x, y = draws(60, 0), 0.4 + draws(60, 1)
    made = Wasserstein.make({"exact": True})
    assert made(FeatureSet(x, "points"), FeatureSet(y, "points")).value == pytest.approx(sliced(x, y), rel=1e-10)
    x = draws(200, 2, d=2)
    value = made(FeatureSet(x, "points"), FeatureSet(x[::-1] + np.array([3.0, 4.0]), "points"))
    assert value.value == pytest.approx(5) and value.name == "w2[points]" and value.interval[0] <= value.value


def test_images_are_their_features_and_the_name_says_which():
    real, fake = (FeatureSet(draws(60, s, 8), "gencli-features-v1", "abc", "told") for s in (0, 1))
    value = Wasserstein.make()(real, fake)
    assert value.name == "sliced-w2[gencli-features-v1]" and value.note == "told" and "image" in Wasserstein.kinds


def test_it_is_a_distance():
    x, y, z = draws(100, 0, 2), 1 + draws(80, 1, 2), 2 * draws(60, 2, 2)
    assert sliced(x, x) == 0
    assert sliced(x, y) == pytest.approx(sliced(y, x))
    assert sliced(x, z) <= sliced(x, y) + sliced(y, z)


def test_the_value_is_repeatable_and_inside_its_interval():
    real, fake = FeatureSet(draws(200, 0, 2), "points"), FeatureSet(0.5 + draws(200, 1, 2), "points")
    value = Wasserstein.make()(real, fake)
    assert value == Wasserstein.make()(real, fake) and value.name == "sliced-w2[points]"
    assert value.interval[0] < value.value < value.interval[1]
