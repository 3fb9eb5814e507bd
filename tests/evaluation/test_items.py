"""Metrics of items on a run: samples drawn once and kept whole, both splits, receipts, and the picture of the worst."""

import numpy as np
import pytest
import torch
from tiny import opened, smoke, trained

from gencli.bundle import Run
from gencli.config import choose, merge
from gencli.data._base import Split
from gencli.data.digits import Digits
from gencli.errors import GencliError
from gencli.evaluation import evaluate, items
from gencli.evaluation.generate import class_field, samples
from gencli.metrics._features import extractor
from gencli.metrics.class_accuracy import ClassAccuracy
from gencli.metrics.memorisation import Memorisation
from gencli.registry import load


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GENCLI_HOME", str(tmp_path / "home"))


@pytest.fixture
def run(tmp_path):
    return Run.load(trained(tmp_path, smoke("gated-pixelcnn")))


def test_samples_of_a_run_are_kept_whole_with_their_labels(run, monkeypatch):
    request = evaluate.request_of(run, evaluate.Plan(12, batch=5))
    made, receipt = items.samples_of_run(run, request)
    assert made.x.dtype == np.uint8 and torch.equal(torch.from_numpy(made.x), samples(run, request))
    assert receipt["seeds"] == "0-11" and not any(key.startswith("features") for key in receipt)
    monkeypatch.setattr(evaluate, "generate", lambda *args: pytest.fail("drawn again"))
    again, _ = items.samples_of_run(run, request)
    assert np.array_equal(again.x, made.x) and again.cond.keys() == made.cond.keys()


def test_a_run_is_measured_and_metrics_of_items_are_told_from_others(run):
    parts = [choose("metrics", name) for name in ("fid", "class-accuracy", "linear-probe")]
    metrics = items.metrics_of(parts)
    assert [name for name, _ in metrics] == ["class-accuracy", "linear-probe"] and items.draws(metrics)
    assert not items.draws(metrics[1:]) and not items.fits(metrics, type(run.model))
    assert items.fits(metrics, load("models", "vqvae")) and items.fits(metrics, load("models", "classifier"))
    labelled = merge(smoke("gated-pixelcnn"), {"data": {"image_size": 8}})["data"]
    made, given = items.measure(metrics[:1], run, opened(labelled), extractor("gencli"), evaluate.Plan(20, batch=7))
    assert len(given.samples) == 20 and made[0].value.n == 20 and 0 <= made[0].value.value <= 1
    assert made[0].receipt["weights"] == run.weights_hash() and made[0].receipt["labels"] == "balanced"


def test_a_metric_without_samples_draws_none(tmp_path, monkeypatch):
    run = Run.load(trained(tmp_path, smoke("classifier")))
    monkeypatch.setattr(evaluate, "generate", lambda *args: pytest.fail("drawn"))
    metrics = items.metrics_of([choose("metrics", "linear-probe")])
    made, given = items.measure(
        metrics, run, opened(smoke("classifier")["data"]), extractor("gencli"), evaluate.Plan(9)
    )
    assert given.samples is None and made[0].receipt["run"] == run.name and 0.2 < made[0].value.value <= 1


def test_every_metric_sees_the_same_evidence_and_has_a_receipt(run):
    data = Digits.make({})
    test = data.split("test")
    given = items.evidence(data, extractor("gencli"), test, None, data.spec.cond["label"])
    assert len(given.train) == len(data.split("train")) and np.array_equal(
        given.test.features.x, given.samples.features.x
    )
    made = items.weigh(
        [("memorisation", Memorisation.make()), ("class-accuracy", ClassAccuracy.make())], given, {"run": "r"}
    )
    assert len(made) == 5 and all(result.receipt["run"] == "r" and result.receipt["metric"] for result in made)
    assert made[0].value.value < -1, "held-out items are nearest to themselves, which no memory is"
    assert class_field(run, None) == run.model.spec.cond.get("label")


def test_the_picture_shows_each_sample_beside_its_training_item():
    data = Digits.make({})
    copies = Split(data.split("train").x[:80])
    given = items.evidence(data, extractor("pixels"), copies)
    made = items.weigh([("memorisation", Memorisation.make({"worst": 4}))], given, {})
    picture = items.pictured(made, given)
    array = np.asarray(picture.convert("L"))
    assert (picture.width > 8 * 32) and np.array_equal(array[2:34, 2:34], array[2:34, 36:68]), (
        "a copy beside its original"
    )
    assert items.pictured(made[1:2], given) is None


def test_data_without_a_training_split_are_refused():
    data = Digits.make({})
    data._splits = {"train": data.split("train").only(np.arange(0)), "test": data.split("test")}
    with pytest.raises(GencliError, match="has no train items"):
        items.evidence(data, extractor("gencli"))
