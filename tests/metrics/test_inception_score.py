"""The Inception score: its two ends, the peers' value, where the probabilities come from."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from evidence import bundled, digits

from gencli.errors import GencliError
from gencli.evaluation.receipts import halves
from gencli.metrics import _inception
from gencli.metrics._base import FeatureSet
from gencli.metrics._features import extractor, reference
from gencli.metrics._torchvision import import_torchvision
from gencli.metrics.inception_score import InceptionScore, score, scores


def draws(n, k, seed, scale=2.0):
    return scale * np.random.default_rng(seed).standard_normal((n, k))


def features(logits):
    """A set whose features are its logits."""
    return FeatureSet(logits, "f", "abc", head=lambda x: x)


def test_sure_and_even_predictions_score_the_number_of_classes_and_equal_ones_one():
    with np.errstate(divide="ignore"):
        one_hot = np.log(np.tile(np.eye(7), (5, 1)))  # −∞ but for one class
    assert score(one_hot) == pytest.approx(7, abs=1e-12)
    assert score(np.tile(draws(1, 7, 0), (50, 1))) == pytest.approx(1, abs=1e-12)


def test_order_within_a_split_changes_nothing_and_probabilities_decide():
    logits = draws(200, 10, 0)
    assert score(logits[::-1]) == pytest.approx(score(logits), rel=1e-12)
    assert score(logits + draws(200, 1, 1)) == pytest.approx(score(logits), rel=1e-12)
    assert 1 < score(logits) < score(3 * logits) < 10


def test_torch_fidelity_computes_the_same():
    import_torchvision()
    theirs = pytest.importorskip("torch_fidelity.metric_isc").isc_features_to_metric
    logits = draws(1000, 12, 0)
    for splits, part in ((1, [logits]), (10, np.split(logits, 10))):
        found = theirs(torch.tensor(logits), splits=splits, shuffle=False)
        ours = [score(one) for one in part]
        assert np.mean(ours) == pytest.approx(found["inception_score_mean"], rel=1e-9)
        assert np.std(ours) == pytest.approx(found["inception_score_std"], rel=1e-9, abs=1e-12)


def test_items_sorted_by_class_are_not_scored_class_by_class():
    logits = np.repeat(20 * np.eye(10), 50, 0)
    assert score(logits[:50]) == pytest.approx(1) and scores(logits, 10).min() > 8


def test_the_value_is_the_mean_of_its_splits_with_their_spread_and_the_references_score():
    real, fake = features(draws(2000, 10, 0, 4.0)), features(draws(2000, 10, 1))
    value = InceptionScore.make()(real, fake)
    found = scores(fake.x, 10)
    assert value.value == pytest.approx(found.mean()) and value.facts["sd"] == pytest.approx(found.std())
    assert value.interval[0] < value.value < value.interval[1] and value.better == "higher" and value.n == 2000
    assert value.name == "inception-score[f]" and "10 classes, sd" in value.note and "too low" not in value.note
    assert value.facts["reference_score"] == pytest.approx(scores(real.x, 10).mean())
    assert value.facts["reference_score"] > value.value + 1
    assert "too low" in InceptionScore.make()(real, features(draws(900, 10, 1))).note


def test_the_bundled_features_score_digits_by_their_own_classifier():
    images = digits().split("test").batch(torch.arange(160))["x"]
    found = bundled().extract([images])
    with torch.no_grad():
        theirs = bundled().net.class_logits(images.float() / 255).numpy()
    assert np.allclose(found.head(found.x), theirs, atol=1e-4)
    noise = torch.randint(256, images.shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    values = [InceptionScore.make({"splits": 1})(found, made).value for made in (found, bundled().extract([noise]))]
    assert 7 < values[0] < 10 and values[1] < 2  # the classifier is 94 % sure of ten digits of its twenty classes
    first, second = halves(reference(digits(), "test", bundled()))
    assert InceptionScore.make({"splits": 2})(first, second).value > 5


def test_features_without_a_classifier_are_refused():
    for name in ("random", "pixels"):
        made = extractor(name).extract([torch.randint(256, (40, 1, 8, 8)).to(torch.uint8)])
        with pytest.raises(GencliError, match=f"features '{made.extractor}' have none"):
            InceptionScore.make()(made, made)


class Published(torch.nn.Module):
    """Stands in for the published file, with its last layer."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AvgPool2d(23), torch.nn.Conv2d(3, 2048, 13))
        self.output = torch.nn.Linear(2048, 1008)

    def forward(self, x):
        return self.output(self.layers(x).flatten(1))


def test_inceptions_logits_leave_out_the_last_bias(tmp_path):
    net, path = Published(), tmp_path / _inception.FILE
    torch.jit.script(net).save(str(path))
    by = _inception.Inception(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    x = draws(4, 2048, 0)
    expected = torch.tensor(x) @ net.output.weight.double().T
    assert np.allclose(by.head(x), expected.detach().numpy(), atol=1e-10)
    relabelled = dataclasses.replace(by.together([x]), extractor="inception-adm")
    assert np.allclose(relabelled.head(x), expected.detach().numpy(), atol=1e-10)
