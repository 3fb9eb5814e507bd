"""VQ-VAE: the passport of the catalogue, the released network's counts, and resuming."""

import copy
import itertools

import pytest
import torch

from gencli.core import Autoencoder, Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.vqvae import VQVAE

IMAGES = Spec(Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)))
TINY = {"width": 8, "residual_width": 4, "residual_blocks": 1}


def tiny(spec=IMAGES, seed=0, downsamples=2, **settings):
    torch.manual_seed(seed)
    net = {**TINY, "downsamples": downsamples}
    parts = {"encoder": {"name": "conv-encoder", **net}, "decoder": {"name": "conv-decoder", **net}}
    return VQVAE.make({"codes": 16, "dim": 4, **parts, **settings}, spec)


def images(n, seed=0, spec=IMAGES):
    return torch.rand((n, *spec.x.shape), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def turn(step=0, n=8, rows=None):
    return Turn("main", step, 10, Rng.batch("t", step, total=n, rows=rows))


def count(module):
    return sum(p.numel() for p in module.parameters())


def train(model, optimiser, steps):
    for step in steps:
        losses = model({"x": images(8, step)}, turn(step))
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        model.after_step(turn(step))


def test_the_default_network_has_the_released_parameter_counts():
    with torch.device("meta"):
        model = VQVAE.make({}, Spec(Field("image", (3, 32, 32), vocab=256, range=(-1.0, 1.0))))
    assert count(model.encoder.body) == 364_160
    assert count(model.encoder.project) == 8_256
    assert count(model.decoder) == 290_307
    assert count(model) + model.quantiser.codebook.numel() == 695_491
    assert count(VQVAE.make({"codebook": "gradient"}, model.spec)) == 695_491


def test_cifar_images_become_8x8_indices_of_512_codes():
    model = VQVAE.make({}, Spec(Field("image", (3, 32, 32), vocab=256, range=(-1.0, 1.0)))).eval()
    assert isinstance(model, Autoencoder)
    assert model.latent == Field("codes", (8, 8), vocab=512)
    codes = model.encode(images(2, spec=model.spec))
    assert codes.shape == (2, 8, 8) and codes.dtype == torch.long
    assert codes.min() >= 0 and codes.max() < 512
    assert model.decode(codes).shape == (2, 3, 32, 32)


def test_the_reconstruction_gradient_is_equal_at_the_encoder_and_at_the_decoder():
    model = tiny().double()
    z = model.encoder(images(4).double())
    z.retain_grad()
    values = model.quantiser(z).values
    values.retain_grad()
    (model.decoder(values) - images(4, 1)).square().mean().backward()
    assert values.grad.abs().max() > 0
    assert torch.equal(z.grad, values.grad)


def test_beta_weighs_the_encoder_and_never_the_codebook():
    """TRAPS 44."""
    grads = {}
    for beta in (0.25, 1.0):
        model = tiny(beta=beta, codebook="gradient").double()
        model({"x": images(8).double()}, turn())["loss"].backward()
        grads[beta] = (model.encoder.project.weight.grad.clone(), model.quantiser.codebook.grad.clone())
    assert torch.equal(grads[0.25][1], grads[1.0][1]) and grads[1.0][1].abs().max() > 0
    assert not torch.allclose(grads[0.25][0], grads[1.0][0])


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_every_parameter_gets_a_gradient_and_the_loss_is_the_papers(codebook):
    model = tiny(codebook=codebook, beta=0.4)
    model.variance.fill_(0.3)
    x = images(8)
    losses = model({"x": x}, turn())
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    z = model.encoder(x)
    e = model.quantiser.lookup(model.encode(x))
    expected = (model.decoder(e) - x).square().mean() / 0.3 + 0.4 * (z - e).square().mean()
    expected = expected + (z - e).square().mean() if codebook == "gradient" else expected
    torch.testing.assert_close(losses["loss"], expected)
    torch.testing.assert_close(losses["each"].mean(), expected)
    assert 1 <= losses["perplexity"] <= 16 and 1 <= losses["batch_perplexity"] <= 16


def test_encode_then_decode_is_reconstruct_and_training_sees_the_same_images():
    model = tiny().eval()
    x = images(4)
    codes = model.encode(x)
    assert torch.equal(model.decode(codes), model.reconstruct(x))
    assert torch.equal(model.decoder(model.quantiser(model.encoder(x)).values), model.reconstruct(x))
    assert torch.equal(codes, torch.cat([model.encode(row[None]) for row in x]))


def test_initialise_takes_variance_and_codes_from_the_data():
    model = tiny()
    data = ({"x": images(32, seed) * 0.5} for seed in itertools.count())
    model.initialise(data, 64, Rng.batch("init", total=1))
    seen = torch.cat([images(32, seed) for seed in range(4)]) * 0.5  # 32 vectors a code
    torch.testing.assert_close(model.variance, seen.var(correction=0))
    assert int(model.quantiser.statistics.epoch) == 64 * 4
    losses = model({"x": images(32) * 0.5}, turn(n=32))
    assert losses["batch_perplexity"] > 8
    assert losses["commitment"] < 0.5 * model.encoder(seen).var()


def test_codes_follow_moving_averages_only_after_the_step():
    model = tiny()
    before = model.quantiser.codebook.clone()
    model({"x": images(8)}, turn())
    assert torch.equal(before, model.quantiser.codebook)
    model.after_step(turn())
    assert not torch.equal(before, model.quantiser.codebook)


def test_two_micro_batches_give_the_codebook_of_one():
    whole, split = tiny(decay=0.5).double(), tiny(decay=0.5).double()
    for step in range(4):
        x = images(8, step).double()
        whole({"x": x}, turn(step))
        for rows in (range(0, 4), range(4, 8)):
            split({"x": x[rows.start : rows.stop]}, turn(step, rows=rows))
        whole.after_step(turn(step))
        split.after_step(turn(step))
    torch.testing.assert_close(whole.quantiser.codebook, split.quantiser.codebook)


def test_resumed_from_its_state_it_goes_on_bit_for_bit():
    models = [tiny(decay=0.5), tiny(decay=0.5, seed=1)]
    optimisers = [torch.optim.Adam(m.parameters(), 1e-2) for m in models]
    train(models[0], optimisers[0], range(6))
    models[1].load_state_dict(models[0].state_dict())
    optimisers[1].load_state_dict(copy.deepcopy(optimisers[0].state_dict()))
    for model, optimiser in zip(models, optimisers, strict=True):
        train(model, optimiser, range(6, 12))
    assert all(torch.equal(v, models[1].state_dict()[k]) for k, v in models[0].state_dict().items())


def test_what_only_training_needs_is_declared_so():
    keys = {key for key in tiny().state_dict() if key.startswith(VQVAE.training_only)}
    assert keys == {f"quantiser.statistics.{k}" for k in ("counts", "sums", "steps", "tally", "whole", "epoch")}


def test_a_few_steps_lower_the_loss_on_a_fixed_batch_below_the_datas_mean():
    model = tiny()
    x = images(8).round()
    model.initialise(itertools.repeat({"x": x}), 8, Rng.batch("init", total=1))
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(100):
        losses = model({"x": x}, turn(step))
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
        model.after_step(turn(step))
    assert losses["recon"] < 0.8  # predicting the mean gives 1


def test_tokens_points_and_sides_that_do_not_divide_are_refused():
    with pytest.raises(GencliError, match="needs images with a range, got image"):
        tiny(Spec(Field("image", (1, 8, 8), vocab=17)))
    with pytest.raises(GencliError, match="got points"):
        tiny(Spec(Field("points", (2,), range=(-1.0, 1.0))))
    with pytest.raises(GencliError, match=r"30×32 is not divisible by the network.s stride 4") as caught:
        tiny(Spec(Field("image", (1, 30, 32), vocab=256, range=(-1.0, 1.0))))
    assert "28 or 32" in caught.value.hint


def test_an_encoder_and_a_decoder_of_different_strides_are_refused():
    with pytest.raises(GencliError, match="conv-decoder with downsamples 1"):
        tiny(decoder={"name": "conv-decoder", **TINY, "downsamples": 1})


@pytest.mark.parametrize("downsamples", [1, 2, 3])
def test_every_stride_gives_its_grid(downsamples):
    model = tiny(downsamples=downsamples)
    assert model.latent.shape == (8 >> downsamples,) * 2
    assert model.reconstruct(images(2)).shape == (2, 1, 8, 8)
