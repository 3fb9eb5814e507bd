"""A trained autoencoder as a codec, and the passport of tokenised autoregression."""

import math

import pytest
import torch
from torch import nn

from gencli.bundle import Run
from gencli.codecs.learned import Learned
from gencli.codecs.pixels import Pixels
from gencli.core import Autoencoder, Field, Model, Rng, Spec
from gencli.errors import GencliError
from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from gencli.models.vae.vqvae import VQVAE
from gencli.samplers.next_token import NextTokenSampler

DATA = Spec(Field("image", (3, 16, 16), vocab=256), {"label": Field("label", (), vocab=4)})
NET = {"width": 8, "residual_width": 4, "residual_blocks": 1}
PRIOR = {"name": "gated-pixelcnn", "width": 8, "layers": 2, "kernel": 3, "first": 5, "head": 8}


@pytest.fixture
def run():
    torch.manual_seed(0)
    pixels = Pixels.make({})
    spec = pixels.spec(DATA)
    parts = {"encoder": {"name": "conv-encoder", **NET}, "decoder": {"name": "conv-decoder", **NET}}
    model = VQVAE.make({"codes": 32, "dim": 4, **parts}, spec)
    spread = Rng.batch("spread", total=1)
    model.quantiser.initialise(model.encoder(torch.rand(64, 3, 16, 16) * 2 - 1).movedim(1, -1).flatten(0, -2), spread)
    return Run(model, [pixels], spec, DATA, {"name": "tiny-vqvae"})


def bytes_(n, seed=0):
    x = torch.randint(256, (n, 3, 16, 16), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"x": x, "label": torch.arange(n) % 4}


def test_data_become_codes_and_conditions_stay(run):
    codec = Learned.make({}, run)
    spec = codec.spec(DATA)
    assert spec.x == run.model.latent == Field("codes", (4, 4), vocab=32)
    assert spec.cond == DATA.cond
    batch = codec.encode(bytes_(5))
    pixels = run.codecs[0].encode(bytes_(5))["x"]
    assert torch.equal(batch["x"], run.model.eval().encode(pixels)) and batch["x"].dtype == torch.long
    assert batch["label"].tolist() == [0, 1, 2, 3, 0]


def test_decode_after_encode_is_the_runs_reconstruction_in_bytes(run):
    codec = Learned.make({}, run)
    codec.spec(DATA)
    back = codec.decode(codec.encode(bytes_(3)))["x"]
    pixels = run.codecs[0].encode(bytes_(3))
    assert back.dtype == torch.uint8
    assert torch.equal(back, run.codecs[0].decode({"x": run.model.reconstruct(pixels["x"])})["x"])


def test_micro_batches_do_not_matter_and_nothing_is_recorded_for_gradients(run, monkeypatch):
    codec = Learned.make({}, run)
    whole = codec.encode(bytes_(10))["x"]
    monkeypatch.setattr("gencli.codecs.learned.ROWS", 3)
    assert torch.equal(codec.encode(bytes_(10))["x"], whole)
    assert not codec._through(run.model.decode, whole).requires_grad


def test_encoding_trains_nothing_even_if_the_run_came_in_training_mode(run):
    run.model.train()
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    codec = Learned.make({}, run)
    codec.encode(bytes_(4))
    run.model.after_step(None)
    assert all(torch.equal(before[key], value) for key, value in run.model.state_dict().items())
    assert not any(p.requires_grad for p in run.model.parameters())


def test_the_codecs_model_is_in_no_state_dict(run):
    codec = Learned.make({}, run)
    prior = GatedPixelCNN.make({"net": PRIOR}, codec.spec(DATA))
    prior.codec = codec
    assert not isinstance(codec, nn.Module)
    assert not any("encoder" in key or key.startswith("codec") for key in prior.state_dict())


def test_a_run_that_is_no_autoencoder_is_refused():
    class Lone(Model):
        def loss(self, batch, turn):
            return {}

    with pytest.raises(GencliError, match="'lone-run' cannot be a codec: Lone"):
        Learned.make({}, Run(Lone(None, DATA), [], DATA, DATA, {"name": "lone-run"}))


def test_data_of_another_shape_are_refused_naming_both(run):
    with pytest.raises(GencliError, match=r"trained on image \(3, 16, 16\), the data are image \(1, 8, 8\)"):
        Learned.make({}, run).spec(Spec(Field("image", (1, 8, 8), vocab=17)))


def test_tokenised_autoregression(run):
    """Passport: cached steps equal teacher forcing to 1e-4 in fp32, tokens in [0, K), L = (H/f)(W/f), bits/dim by 3HW."""
    codec = Learned.make({}, run)
    torch.manual_seed(1)
    prior = GatedPixelCNN.make({"net": PRIOR}, codec.spec(DATA)).eval()
    for p in prior.parameters():
        p.data.mul_(3)
    assert isinstance(run.model, Autoencoder) and len(prior.order) == (16 // 4) * (16 // 4)
    label = torch.arange(6) % 4
    with torch.no_grad():
        *_, last = NextTokenSampler.make().frames(prior, prior.spec, 6, Rng.rows(range(6)), {"label": label})
        assert last.x.min() >= 0 and last.x.max() < 32
        tokens, state = last.x.flatten(1), prior.start(6, label=label)
        forced = prior.logits(tokens, label=label)
        for i in range(16):
            logits, state = prior.next(tokens[:, i - 1] if i else None, state)
            torch.testing.assert_close(logits, forced[:, i], atol=1e-4, rtol=1e-4)
        assert forced.std() > 0.1
        image = codec.decode({"x": last.x})["x"]
        assert image.shape == (6, 3, 16, 16) and image.dtype == torch.uint8
        each = torch.stack([forced[:, i].log_softmax(-1).gather(1, tokens[:, i : i + 1])[:, 0] for i in range(16)])
        bits = -each.sum(0) / math.log(2) / (3 * 16 * 16)
        nats = prior.log_prob(last.x, Rng.rows(range(6)), label=label) + codec.log_det({"x": last.x})
        torch.testing.assert_close(-nats.float() / math.log(2) / DATA.x.size, bits)
