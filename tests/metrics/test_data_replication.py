"""Data replication: the index is brute force, copies are at 1, and small training sets are copied more."""

import numpy as np
import pytest
from evidence import beside_digits, digits, images, rows

from gencli.errors import GencliError
from gencli.metrics._base import Evidence
from gencli.metrics.data_replication import DataReplication, similarity, within


def draws(n, seed, d=6):
    return np.random.default_rng(seed).standard_normal((n, d))


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_index_search_is_brute_force():
    x, y = unit(draws(90, 0)), unit(draws(400, 1))
    value, index = similarity(x, y)
    assert np.array_equal(index, (x @ y.T).argmax(1)) and np.allclose(value, (x @ y.T).max(1), atol=1e-12)
    inner = y @ y.T - 3 * np.eye(400)
    assert np.allclose(within(y, 400), inner.max(1), atol=1e-12)
    assert np.allclose(within(y, 100), inner.max(1)[np.arange(100) * 4], atol=1e-12)


def test_exact_copies_have_similarity_one_and_scale_is_nothing():
    train = draws(300, 2)
    made = DataReplication.make()(Evidence(rows(train), rows(draws(9, 3)), rows(7 * train[:50])))
    share, above, mean = made
    assert share.value == above.value == 1.0 and mean.value == pytest.approx(1.0, abs=1e-15)
    assert all(v.interval[0] <= v.value <= v.interval[1] for v in made)
    found = mean.facts["most_similar"]
    assert len(found) == 16 and all(row["sample"] == row["training"] and row["similarity"] == 1 for row in found)


def test_new_items_are_as_alike_as_training_items():
    made = DataReplication.make()(Evidence(rows(draws(2000, 0)), rows(draws(9, 1)), rows(draws(1000, 2))))
    assert made[0].value == pytest.approx(0.05, abs=0.025) and made[0].interval[0] < 0.05 < made[0].interval[1]
    assert made[2].value == pytest.approx(made[2].facts["train_train_mean"], abs=0.005)


def test_a_smaller_training_set_is_copied_more():
    rng, means = np.random.default_rng(0), []
    for n in (64, 512, 4096):
        train = draws(4096, 1, 12)[:n]
        centre = train[rng.integers(0, n, 400)]
        samples = centre + (n / 4096) ** 0.5 * rng.standard_normal(
            centre.shape
        )  # the less is seen, the better it is known
        means.append(DataReplication.make()(Evidence(rows(train), rows(train[:9]), rows(samples)))[2].value)
    assert means == sorted(means, reverse=True) and means[0] > means[-1] + 0.02


def test_digits_copies_stand_out_and_held_out_digits_do_not():
    train, test = digits().split("train").x, digits().split("test").x
    copied = DataReplication.make()(beside_digits(images(train[:100])))[0]
    fresh = DataReplication.make()(beside_digits(images(test)))[0]
    assert copied.value == 1.0 and fresh.value < 0.12


def test_features_without_a_direction_are_refused():
    with pytest.raises(GencliError, match="2 items have features f that are all zero"):
        DataReplication.make()(
            Evidence(rows(draws(9, 0)), rows(draws(9, 0)), rows(draws(5, 0) * [[0], [0], [1], [1], [1]]))
        )
