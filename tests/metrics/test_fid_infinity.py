"""The extrapolated Fréchet distance on Gaussians, whose true distance is known."""

import numpy as np
import pytest

from gencli.errors import GencliError
from gencli.metrics._base import FeatureSet
from gencli.metrics.fid import Fid
from gencli.metrics.fid_infinity import FidInfinity, extrapolated


def gaussian(n, seed, d=8, shift=0.0, spread=1.0):
    return FeatureSet(shift + spread * np.random.default_rng(seed).standard_normal((n, d)), "f", "abc")


def test_a_distance_that_falls_by_a_constant_over_n_is_extrapolated_exactly(monkeypatch):
    from gencli.metrics import fid_infinity

    monkeypatch.setattr(fid_infinity, "distance", lambda r, f: 3 + 50 / len(r) + 20 / len(f))
    found = extrapolated(np.zeros((1000, 1)), np.zeros((500, 1)), np.linspace(0.1, 1, 10))
    assert found == pytest.approx(3, abs=1e-9)


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (0.3, 1.2)])
def test_it_is_nearer_to_the_truth_than_the_distance_itself_and_its_interval_holds_it(shift, spread):
    truth = 8 * (shift**2 + (spread - 1) ** 2)
    held, errors = 0, []
    for seed in range(8):
        real, fake = gaussian(300, 2 * seed), gaussian(300, 2 * seed + 1, shift=shift, spread=spread)
        value, plain = FidInfinity.make()(real, fake), Fid.make()(real, fake)
        held += value.interval[0] <= truth <= value.interval[1]
        errors.append((value.value - truth, plain.value - truth))
    bias, plain_bias = np.abs(np.mean(errors, 0))
    assert bias < 0.3 * plain_bias and held >= 7


def test_a_small_reference_is_extrapolated_too():
    found = [FidInfinity.make()(gaussian(200, 2 * s), gaussian(1500, 2 * s + 1)).value for s in range(8)]
    plain = [Fid.make()(gaussian(200, 2 * s), gaussian(1500, 2 * s + 1)).value for s in range(8)]
    assert abs(np.mean(found)) < 0.3 * np.mean(plain)


def test_a_second_evaluation_gives_the_same_number_and_says_its_subsets():
    real, fake = gaussian(400, 0), gaussian(300, 1, shift=0.3)
    value = FidInfinity.make()(real, fake)
    assert value == FidInfinity.make()(real, fake) and value.value != FidInfinity.make({"seed": 1})(real, fake).value
    assert value.name == "fid-infinity[f]" and value.n == 300 and "from 30 to 300 items" in value.note
    assert value.interval[0] < value.value < value.interval[1]


def test_fewer_than_four_times_the_features_are_refused():
    with pytest.raises(GencliError, match="at least 256"):
        FidInfinity.make()(gaussian(255, 0, d=64), gaussian(300, 1, d=64))
