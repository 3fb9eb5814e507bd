"""The classifier: its loss, what its features are for, and what it refuses."""

import pytest
import torch
from tiny import smoke, trained
from torch.nn import functional as F

from gencli.config import merge
from gencli.core import Classifier, Denoiser, Features, Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.metrics._features import extractor
from gencli.models.discriminative.classifier import CleanClassifier

X = Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0))
SPEC = Spec(X, {"label": Field("label", (), vocab=5)})
NET = {"name": "resnet", "width": 4, "blocks": 1, "stages": 2}


def model(**settings):
    torch.manual_seed(0)
    return CleanClassifier.make({"net": NET, **settings}, SPEC).eval()


def batch(n=9):
    g = torch.Generator().manual_seed(1)
    return {"x": torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, "label": torch.randint(5, (n,), generator=g)}


def test_the_loss_is_the_cross_entropy_of_the_labels():
    made = batch()
    for smoothing in (0.0, 0.2):
        one = model(smoothing=smoothing)
        logp = one.class_logits(made["x"]).log_softmax(1)
        target = (1 - smoothing) * F.one_hot(made["label"], 5) + smoothing / 5
        losses = one(made, Turn("main", 0, 1, Rng.batch(total=9)))
        assert torch.allclose(losses["each"], -(target * logp).sum(1), atol=1e-6)
        assert losses["accuracy"] == (logp.argmax(1) == made["label"]).float().mean()


def test_it_classifies_and_has_features_and_denoises_nothing():
    one = model()
    assert isinstance(one, Classifier) and isinstance(one, Features) and not isinstance(one, Denoiser)
    x = batch()["x"]
    assert torch.equal(one.class_logits(x, torch.zeros(9)), one.class_logits(x))
    assert torch.allclose(one.net.head(one.features(x)), one.class_logits(x))


def test_noise_is_refused_and_so_are_data_without_classes():
    with pytest.raises(GencliError, match="trained on clean images") as caught:
        model().class_logits(batch()["x"], torch.tensor(0.5))
    assert "noisy-classifier" in caught.value.hint
    with pytest.raises(GencliError, match="data with class labels"):
        CleanClassifier.make({"net": NET}, Spec(X))
    with pytest.raises(GencliError, match=r"whole numbers \(codes of 16 values\)"):
        CleanClassifier.make({"net": NET}, Spec(Field("codes", (1, 8, 8), vocab=16), SPEC.cond))


def test_a_run_of_it_is_a_protocol_of_features(tmp_path):
    folder = trained(tmp_path, merge(smoke("classifier"), {"data": {"image_size": 16}}))
    by = extractor(str(folder))
    x = torch.randint(256, (5, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    made = by.extract([x[:2], x[2:]])
    expected = by.run.model.features(x.float() / 127.5 - 1)
    assert torch.allclose(torch.from_numpy(made.x).float(), expected, atol=1e-5) and made.x.std() > 0
