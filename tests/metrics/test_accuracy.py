"""Accuracy of a classifier on held-out items."""

import math

import numpy as np
import pytest
import torch
from evidence import digits

from gencli.bundle import Run
from gencli.codecs.pixels import Pixels
from gencli.core import Field, Model, Rng, Spec
from gencli.data._base import Split
from gencli.errors import GencliError
from gencli.metrics._shares import auc, share, wilson
from gencli.metrics.accuracy import Accuracy


class Corner(Model):
    """Says the class that stands in the first pixel."""

    def __init__(self, spec, scale=20.0):
        super().__init__(None, spec)
        self.scale = torch.nn.Parameter(torch.tensor(scale))

    def loss(self, batch, turn):
        raise NotImplementedError

    def class_logits(self, x, sigma=None):
        said = (x[:, 0, 0, 0] * 127.5 + 127.5).round().long()
        return self.scale * torch.nn.functional.one_hot(said, self.spec.cond["label"].vocab)


def run_of(classes=4, scale=20.0, names=()):
    data = Spec(Field("image", (1, 4, 4), vocab=256), {"label": Field("label", (), vocab=classes, names=names)})
    pixels = Pixels.make()
    return Run(Corner(pixels.spec(data), scale), [pixels], pixels.spec(data), data, {"name": "corner"})


def items(said, label):
    x = np.zeros((len(said), 1, 4, 4), np.uint8)
    x[:, 0, 0, 0] = said
    return Split(x, {"label": torch.tensor(label)})


def measured(run, data, **kwargs):
    return {value.name: value for value in Accuracy.make()(run, data, Rng.batch("a", total=1), **kwargs)}


def test_it_counts_what_is_right_whatever_the_batches():
    said, label = [0, 1, 2, 3] * 25, [0, 1, 2, 0] * 25
    made = [measured(run_of(), items(said, label), batch_size=size) for size in (7, 64)]
    assert made[0] == made[1] and made[0]["accuracy"].value == 0.75
    assert made[0]["accuracy"].interval == share(np.arange(100) < 75)[1]
    assert measured(run_of(), items(said, label), n=40)["accuracy"].n == 40


def test_guessing_needs_the_log_of_the_number_of_classes():
    made = measured(run_of(scale=0.0), items([0, 1, 2, 3], [3, 2, 1, 0]))["cross-entropy"]
    assert made.value == pytest.approx(math.log(4)) and made.unit == "nats"


def test_what_has_no_or_other_labels_is_refused():
    with pytest.raises(GencliError, match="these have none"):
        measured(run_of(), Split(np.zeros((3, 1, 4, 4), np.uint8)))
    with pytest.raises(GencliError, match="label 6, the model knows classes 0 to 3"):
        measured(run_of(), items([0, 0], [0, 6]))
    with pytest.raises(GencliError, match="needs a model that offers Classifier"):
        run = run_of()
        run.model = type("Mute", (Model,), {"loss": Corner.loss})(None, run.spec)
        measured(run, digits().split("test"))


def test_intervals_of_shares_hold_the_share_and_the_truth():
    for hits, n in ((0, 40), (40, 40), (1, 3), (700, 1000)):
        value, (low, high) = wilson(hits, n)
        assert 0 <= low <= value <= high <= 1 and high - low > 0
    rng = np.random.default_rng(0)
    inside = [low <= 0.2 <= high for low, high in (share(rng.random(150) < 0.2)[1] for _ in range(400))]
    assert 0.92 <= np.mean(inside) <= 0.98
    truth, held = 0.7602, []  # of N(0, 1) below N(1, 1)
    for _ in range(300):
        value, (low, high) = auc(rng.standard_normal(80), 1 + rng.standard_normal(120))
        held.append(low <= truth <= high)
    assert 0.92 <= np.mean(held) <= 0.98
    assert auc(np.array([1, 2]), np.array([2, 3]))[0] == 0.875
