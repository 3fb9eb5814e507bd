"""What may be compared, how likely one value is better, what a receipt says."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from gencli.evaluation import evaluate
from gencli.evaluation.evaluate import Result
from gencli.evaluation.receipts import (
    DECIDING,
    differences,
    explained,
    halves,
    only_seeds_differ,
    over_seeds,
    probability_better,
    seed_ranges,
    standard_error,
)
from gencli.metrics._base import FeatureSet, Value
from gencli.metrics._interval import T_975
from gencli.metrics.fid import Fid
from gencli.metrics.kid import Kid

RECEIPT = {
    **dict.fromkeys(DECIDING, "x"),
    **{
        "weights": "abc",
        "averaged": True,
        "sampler": {"name": "ddim", "steps": 50},
        "seeds": "0-9",
        "file_codec": "PNG",
    },
}


def value(x: float = 1.0, se: float | None = 0.1, better: Any = "lower", **over: Any) -> Value:
    interval = None if se is None else (x - T_975 * se, x + T_975 * se)
    return Value(**{"name": "fid[f]", "value": x, "interval": interval, "n": 100, "better": better, **over})


def result(receipt: dict[str, Any] | None = None, **over: Any) -> Result:
    return Result(value(**over), {**RECEIPT, **(receipt or {})})


@pytest.mark.parametrize("key", DECIDING)
def test_what_decides_a_number_forbids_comparing(key: str) -> None:
    (found,) = differences(result(), result({key: "y"}))
    assert DECIDING[key] in found and "x and y" in found


def test_weights_sampler_and_seeds_may_differ_and_n_codec_and_kind_may_not() -> None:
    free = {"weights": "z", "sampler": {"name": "heun"}, "seeds": "5-9", "averaged": False, "run": "q", "step": 3}
    assert differences(result(), result(free)) == []
    assert differences(result(), result({"file_codec": "none, never in a file"})) == [], "both lossless"
    assert "file codec" in differences(result(), result({"file_codec": "PNG 3, JPEG 90"}))[0]
    assert "N 100 and 50" in differences(result(), result(n=50))[0]
    assert "kind" in differences(result(kind="exact"), result(kind="bound"))[0]


def test_bits_of_the_codes_of_two_codecs_are_not_compared() -> None:
    one, other = (result(kind="codes", facts={"codec": [name]}) for name in "ab")
    assert differences(one, other) == ["the codes of different codecs"] and not differences(one, one)


def test_the_probability_is_that_of_simulated_draws() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 0.1, 200_000), rng.normal(1.15, 0.2, 200_000)
    found = probability_better(value(1.0, 0.1), value(1.15, 0.2))
    assert found == pytest.approx(float((a < b).mean()), abs=5e-3)
    assert probability_better(value(1.0, 0.1, "higher"), value(1.15, 0.2, "higher")) == pytest.approx(1 - found)
    assert probability_better(value(), value()) == 0.5 and probability_better(value(se=None), value()) is None


def test_the_error_is_read_from_the_side_that_is_not_cut() -> None:
    cut = value(0.1, interval=(0.0, 0.1 + T_975 * 0.2))
    assert standard_error(cut) == pytest.approx(0.2)
    assert standard_error(value(facts={"standard_error": 0.03})) == 0.03


def test_two_draws_of_one_distribution_are_rarely_called_decided() -> None:
    """Of 40 pairs without a difference about two lie outside 95 %; dependent errors make it fewer, never many more."""
    rng = np.random.default_rng(1)
    outside = 0
    for _ in range(40):
        real, a, b = (FeatureSet(rng.standard_normal((400, 4)), "f") for _ in range(3))
        p = probability_better(Fid.make()(real, a), Fid.make()(real, b))
        assert p is not None
        outside += not 0.025 < p < 0.975
    assert outside <= 5
    worse = FeatureSet(rng.standard_normal((400, 4)) + 0.5, "f")
    p = probability_better(Fid.make()(real, a), Fid.make()(real, worse))
    assert p is not None and p > 0.999


def config(seed: int, **over: Any) -> dict[str, Any]:
    train = {"seed": seed, "steps": 10}
    return {"recipe": {"train": train, "model": {"name": "ddpm"}}, "data": {"hash": "h"}, "step": 10, **over}


def test_trainings_that_differ_in_their_seed_alone_are_one() -> None:
    assert only_seeds_differ([config(0), config(1), config(2)])
    assert not only_seeds_differ([config(0), config(0)]) and not only_seeds_differ([config(0)])
    assert not only_seeds_differ([config(0), config(1, step=9)])
    assert not only_seeds_differ([config(0), config(1, data={"hash": "other"})])
    other = copy.deepcopy(config(1))
    other["recipe"]["model"]["name"] = "vp"
    assert not only_seeds_differ([config(0), other])
    spread = over_seeds([value(1.0), value(2.0), value(4.0)])
    assert (spread.mean, spread.sd, spread.runs) == (pytest.approx(7 / 3), pytest.approx(np.std([1, 2, 4], ddof=1)), 3)


def test_the_floor_is_between_disjoint_halves_and_near_nothing_for_kid() -> None:
    x = np.random.default_rng(0).standard_normal((401, 8))
    first, second = halves(FeatureSet(x, "f", "p", "note"))
    rows = {tuple(row) for part in (first, second) for row in part.x}
    assert len(first) == len(second) == 200 and len(rows) == 400 and first.fingerprint == "p"
    (made,) = evaluate.floor([("kid", Kid.make())], FeatureSet(x, "f", "p", "note"), {"data_hash": "h"})
    error = standard_error(made.value)
    assert error is not None and abs(made.value.value) < 2 * error
    assert made.value.name == "kid[f] floor" and made.value.n == 200 and made.value.note.startswith("two halves")
    (fid,) = evaluate.floor([("fid", Fid.make())], FeatureSet(x, "f", "p"), {})
    shifted = Fid.make()(first, FeatureSet(second.x + 0.3, "f", "p"))
    assert fid.value.value < shifted.value  # type: ignore[union-attr]


def test_few_items_for_the_features_are_said_in_one_line() -> None:
    real = FeatureSet(np.random.default_rng(0).standard_normal((300, 64)), "f")
    assert "200 items for 64 features" in evaluate.few(200, real) and "256" in evaluate.few(200, real)
    assert evaluate.few(256, real) == "" and evaluate.few(10_000, FeatureSet(real.x[:255], "f"))


def test_a_receipt_in_words_holds_everything_in_order() -> None:
    rows = explained({**RECEIPT, "something_new": 3})
    names = [name for name, _ in rows]
    assert len(rows) == len(RECEIPT) + 1 and names[-1] == "something new"
    words = dict(rows)
    assert words["weights"] == "average over training steps (EMA)" and words["sampler"] == "name ddim, steps 50"
    assert dict(explained({"averaged": False}))["weights"] == "of the last step (raw)"


def test_seeds_as_ranges() -> None:
    assert seed_ranges([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8" and seed_ranges([]) == "" and seed_ranges([4]) == "4"
