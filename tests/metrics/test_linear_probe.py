"""Linear probes: what scikit-learn's pipeline gives, chance where nothing is known, and the latents that are read."""

import numpy as np
import pytest
import torch
from evidence import digits, seen
from tiny import smoke

from gencli.bundle import Run
from gencli.core import Field, Model, Spec
from gencli.data._base import Split
from gencli.errors import GencliError
from gencli.metrics._base import Evidence
from gencli.metrics.linear_probe import LinearProbe, predicted, representation


def blobs(n, seed, apart=3.0, d=5):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 3, n)
    return rng.standard_normal((n, d)) * np.arange(1, d + 1) + apart * np.eye(3, d)[label], label


def test_it_is_scikit_learns_pipeline():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (x, y), (held, _) = blobs(300, 0), blobs(200, 1)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000)).fit(x, y).predict(held)
    ours, steps = predicted(x, y, held, c=0.3)
    assert np.array_equal(ours, theirs) and 0 < steps < 1000
    padded = [np.concatenate([part, np.full((len(part), 1), 7.0)], 1) for part in (x, held)]
    assert np.array_equal(predicted(padded[0], y, padded[1], c=0.3)[0], theirs), "a constant tells nothing"


class Encoder(Model):
    """Three numbers of an item, or what tells nothing of it."""

    def __init__(self, spec, blind=False):
        super().__init__(None, spec)
        self.w = torch.nn.Parameter(torch.tensor(float(not blind)))

    def loss(self, batch, turn):
        raise NotImplementedError

    def features(self, x):
        return x.flatten(1)[:, :3] * self.w


def evidence(run, train, test):
    return Evidence(seen(Split(train[0].astype(np.float32), {"label": torch.from_numpy(train[1])})),
                    seen(Split(test[0].astype(np.float32), {"label": torch.from_numpy(test[1])})), None, run)  # fmt: skip


def run_of(blind=False):
    spec = Spec(Field("points", (5,)))
    return Run(Encoder(spec, blind), [], spec, spec)


def test_features_that_tell_classes_score_and_blind_ones_are_at_chance():
    train, test = blobs(600, 0, 12), blobs(400, 1, 12)
    seeing, pixels = LinearProbe.make()(evidence(run_of(), train, test))
    assert seeing.value > 0.97 and pixels.value > 0.97 and seeing.facts["features"] == 3
    assert seeing.interval[0] < seeing.value <= seeing.interval[1] and seeing.n == 400
    blind, _ = LinearProbe.make()(evidence(run_of(blind=True), train, test))
    assert blind.value == pytest.approx(1 / 3, abs=0.08)
    shuffled = (train[0], np.random.default_rng(2).permutation(train[1]))
    assert LinearProbe.make()(evidence(run_of(), shuffled, test))[0].value < 0.6
    fewer, _ = LinearProbe.make({"most": 50})(evidence(run_of(), train, test))
    assert fewer.facts["n_training"] == 50


def test_discrete_latents_are_read_as_their_vectors():
    run = Run.build(smoke("vqvae"), digits().spec)
    model = run.model.eval()
    x = torch.rand(4, *run.spec.x.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = model.encode(x)
    made = representation(model, x)
    assert torch.equal(made, model.quantiser.codebook[codes].movedim(-1, 1)) and made.shape[1] == model.config.dim


def test_a_model_that_represents_nothing_is_refused():
    train = blobs(30, 0)
    spec = run_of().spec
    mute = type("Mute", (Model,), {"loss": Encoder.loss})
    with pytest.raises(GencliError, match="Mute has none"):
        LinearProbe.make()(evidence(Run(mute(None, spec), [], spec, spec), train, train))
    with pytest.raises(GencliError, match="all items that it is fitted to have one"):
        LinearProbe.make()(evidence(run_of(), (train[0], np.zeros(30, dtype=np.int64)), train))
