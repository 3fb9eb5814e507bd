"""Class accuracy: samples judged by the bundled head and by runs, with classes matched by name."""

import numpy as np
import pytest
import torch
from evidence import beside_digits, digits, images, seen, split
from test_accuracy import items, run_of

from gencli.core import Field
from gencli.data._base import Split
from gencli.errors import GencliError
from gencli.metrics import class_accuracy
from gencli.metrics._base import Evidence
from gencli.metrics.class_accuracy import ClassAccuracy


def test_the_bundled_head_judges_real_digits_right_and_permuted_labels_wrong():
    test = digits().split("test")
    label = test.cond["label"]
    made = ClassAccuracy.make()(beside_digits(images(test.x, label)))
    assert made.value > 0.97 and made.value == made.facts["held_out"] and made.name.startswith("class-accuracy[gencli")
    assert made.facts["per_class"].keys() == set("0123456789") and made.interval[0] < made.value < made.interval[1]
    assert ClassAccuracy.make()(beside_digits(images(test.x, (label + 1) % 10))).value < 0.05


def test_a_run_judges_by_the_names_of_classes(monkeypatch):
    known = run_of(4, names=("a", "b", "c", "d"))
    monkeypatch.setattr(class_accuracy.runs, "named", lambda name: known)
    monkeypatch.setattr(class_accuracy.Run, "load", lambda path, device: known)
    asked = Field("label", (), vocab=3, names=("d", "b", "a"))
    data = items([3, 1, 0, 3], [0, 1, 2, 1])  # the corner says d, b, a, d; asked were d, b, a, b
    evidence = Evidence(seen(data), seen(data), seen(data), None, asked)
    made = ClassAccuracy.make({"classifier": "corner"})(evidence)
    assert made.value == 0.75 and made.facts["per_class"] == {"d": 1.0, "b": 0.5, "a": 1.0}
    other = Evidence(seen(data), seen(data), seen(data), None, Field("label", (), vocab=2, names=("d", "z")))
    with pytest.raises(GencliError, match="does not know class 'z'"):
        ClassAccuracy.make({"classifier": "corner"})(other)
    wide = seen(Split(np.zeros((2, 1, 8, 8), np.uint8), {"label": torch.zeros(2).long()}))
    with pytest.raises(GencliError, match=r"takes \(1, 4, 4\), the samples are \(1, 8, 8\)"):
        ClassAccuracy.make({"classifier": "corner"})(Evidence(wide, wide, wide, None, asked))


def test_clothes_have_the_names_that_the_bundled_head_knows():
    from gencli.data.fashion_mnist import FashionMnist

    names = FashionMnist.make({}).spec.cond["label"].names
    columns = class_accuracy._bundled(Field("label", (), vocab=10, names=names), torch.device("cpu"))
    assert columns(torch.zeros(2, 1, 28, 28).to(torch.uint8)).shape == (2,)
    with pytest.raises(GencliError, match="the bundled classifier does not know class 'frog'"):
        class_accuracy._bundled(Field("label", (), vocab=1, names=("frog",)), torch.device("cpu"))


def test_samples_that_were_not_asked_for_by_class_are_refused():
    with pytest.raises(GencliError, match="asked for by class"):
        ClassAccuracy.make()(Evidence(split("train"), split("test"), images(digits().split("test").x)))
    with pytest.raises(GencliError, match="needs labels"):
        ClassAccuracy.make()(beside_digits(images(digits().split("test").x)))
