"""FSQ: its loss and latents, the use of its codes over an epoch, and the paper's sizes."""

import itertools

import pytest
import torch

from gencli import recipe
from gencli.core import Autoencoder, Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.fsq import FSQ
from gencli.nn.quantise import perplexity

IMAGES = Spec(Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)))
NET = {"width": 8, "residual_width": 4, "residual_blocks": 1}


def tiny(seed=0, **settings):
    torch.manual_seed(seed)
    parts = {"encoder": {"name": "conv-encoder", **NET}, "decoder": {"name": "conv-decoder", **NET}}
    model = FSQ.make({"levels": (5, 4), **parts, **settings}, IMAGES)
    for p in model.encoder.parameters():  # large enough that codes differ
        p.data = torch.randn_like(p) * (2 / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else 0)
    return model


def images(n, seed=0):
    return torch.rand((n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def turn(step=0, n=8):
    return Turn("main", step, 10, Rng.batch("t", step, total=n))


def test_the_loss_is_the_distance_through_the_codes_over_the_datas_variance():
    model, x = tiny(), images(8)
    model.initialise(itertools.repeat({"x": images(64, 1)}), 64, Rng.batch("i", total=1))
    losses = model({"x": x}, turn())
    expected = (model.reconstruct(x) - x).square().mean() / images(64, 1).var(correction=0)
    torch.testing.assert_close(losses["loss"], expected)
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    codes = model.encode(x)
    assert codes.shape == (8, 2, 2) and codes.dtype == torch.long and len(codes.unique()) > 3
    assert torch.equal(model.decode(codes), model.reconstruct(x))


def test_the_use_of_codes_is_counted_over_an_epoch_in_training_only():
    model = tiny()
    model.initialise(itertools.repeat({"x": images(8)}), 16, Rng.batch("i", total=1))  # 64 codes an epoch
    for step in (0, 1):
        for rows in (slice(0, 4), slice(4, 8)):  # micro-batches
            shown = model({"x": images(8, step)[rows]}, turn(step, 4))
        model.after_step(turn(step))
    counts = torch.bincount(torch.cat([model.encode(images(8, s)) for s in (0, 1)]).flatten(), minlength=20)
    assert int(model.used.tally.sum()) == 0 and torch.equal(model.used.whole, counts)
    shown = model.eval()({"x": images(8, 2)}, turn(2))
    torch.testing.assert_close(shown["perplexity"], perplexity(counts))
    torch.testing.assert_close(shown["usage"], (counts > 0).float().mean())
    model.after_step(turn(2))
    assert torch.equal(model.used.whole, counts)


def test_the_papers_recipe_has_1000_codes_on_a_16x16_grid():
    values = {key: value for key, value in recipe.load("fsq-imagenet256")["model"].items() if key != "name"}
    with torch.device("meta"):
        model = FSQ.make(values, Spec(Field("image", (3, 256, 256), vocab=256, range=(-1.0, 1.0))))
    assert isinstance(model, Autoencoder) and model.latent == Field("codes", (16, 16), vocab=1000)
    assert model.encoder(torch.empty(1, 3, 256, 256, device="meta")).shape == (1, 4, 16, 16)
    # MaskGIT's tokeniser without its codebook, with 4 numbers for each of its 256 a code
    fewer = 252 * (512 + 1) + 252 * 9 * 512
    assert sum(p.numel() for p in model.parameters()) == 54_515_587 - 1024 * 256 - fewer
    with pytest.raises(GencliError, match="needs 3 levels or more"):
        tiny(levels=(2, 5))
