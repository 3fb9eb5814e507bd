"""CAS: real items as samples score as real ones do; wrong labels, missing modes and classes without variety cost accuracy."""

from copy import copy

import pytest
import torch
from evidence import beside_digits, bundled, digits, images, seen

from gencli.data._base import Split
from gencli.data.digits import Digits
from gencli.errors import GencliError
from gencli.evaluation.items import evidence
from gencli.metrics.cas import Cas


def halves():
    """The training digits and their labels."""
    train = digits().split("train")
    return torch.as_tensor(train.x), train.cond["label"]


def score(x, label):
    return Cas.make()(beside_digits(images(x, label)))


def by_pixels(x, label):
    """The same with grey levels as features."""
    train, test = (seen(split, flat(split.x)) for split in map(digits().split, ("train", "test")))
    return Cas.make()(beside_digits(seen(images(x, label).items, flat(x)), train=train, test=test)).value


def flat(x):
    return torch.as_tensor(x).flatten(1).double().numpy() / 255


def test_training_items_as_samples_score_as_the_real_ones_beside_them():
    made = score(*halves())
    assert made.value == made.facts["trained_on_real"] > 0.95
    assert made.name == "cas[gencli-features-v1]" and made.interval[0] < made.value < made.interval[1]
    assert made.n == made.facts["n_real"] and made.facts["n_held_out"] == len(digits().split("test"))


def test_labels_that_are_wrong_score_by_chance_or_less():
    x, label = halves()
    assert score(x, (label + 1) % 10).value < 0.1


def test_dropped_modes_and_classes_of_one_image_cost_accuracy():
    x, label = halves()
    most = label < 7
    assert score(x[most], label[most]).value < score(x, label).value - 0.2
    first = torch.stack([x[label == k][0] for k in range(10)]).repeat(30, 1, 1, 1)
    assert by_pixels(first, torch.arange(10).repeat(30)) < by_pixels(x, label) - 0.15


def test_features_of_as_many_training_items_as_samples_are_extracted(own_home):
    data, counted = Digits.make({}), []

    class Counting(type(bundled())):
        def features(self, images):
            counted.append(len(images))
            return super().features(images)

    by = copy(bundled())
    by.__class__ = Counting
    x, label = halves()
    given = evidence(data, by, Split(x[:100].numpy(), {"label": label[:100]}))
    first = Cas.make({"steps": 5})(given)
    assert sum(counted) == len(data.split("test")) + 100 + 100
    again = Cas.make({"steps": 5})(evidence(data, by, Split(x[:100].numpy(), {"label": label[:100]})))
    assert sum(counted) == len(data.split("test")) + 100 + 200 and again == first
    whole = evidence(data, by, Split(x[:100].numpy(), {"label": label[:100]}))
    assert len(whole.train.features) == len(data.split("train"))
    counted.clear()
    assert Cas.make({"steps": 5})(whole).value == first.value and sum(counted) == 100


def test_what_it_cannot_judge_is_refused():
    x, label = halves()
    with pytest.raises(GencliError, match="cas needs labels"):
        score(x, None)
    with pytest.raises(GencliError, match="one"):
        score(x[label == 3], label[label == 3])
