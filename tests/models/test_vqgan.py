"""VQGAN: the passport of the catalogue, the turns of its two sides, what perceptual networks are, and its alarm."""

import copy
import itertools
import warnings

import pytest
import torch
from tiny import of_run, opened, shaken, smoke, trained
from torch.nn import functional as F

from gencli import recipe
from gencli.bundle import Run
from gencli.config import merge, parse
from gencli.core import Autoencoder, Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.metrics import _features as features
from gencli.models.vae._judged import MEMORY
from gencli.models.vae._perceptual import BUNDLED, Perceptual
from gencli.models.vae.vqgan import VQGAN
from gencli.training.settings import TrainConfig

IMAGES = Spec(Field("image", (1, 16, 16), vocab=256, range=(-1.0, 1.0)))
HALVES = {"width": 8, "residual_width": 4, "residual_blocks": 1}
PARTS = {"encoder": {"name": "conv-encoder", **HALVES}, "decoder": {"name": "conv-decoder", **HALVES}}
PATCH = {"name": "patch-discriminator", "width": 8, "layers": 1, "norm": "group"}


def tiny(spec=IMAGES, seed=0, **settings):
    torch.manual_seed(seed)
    model = VQGAN.make({"codes": 16, "dim": 4, **PARTS, "discriminator": PATCH, **settings}, spec)
    shaken(model)
    return model


def images(n=8, seed=0, spec=IMAGES):
    return torch.rand((n, *spec.x.shape), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def turn(phase="generator", step=50, n=8):
    return Turn(phase, step, 100, Rng.batch("t", step, total=n))


def gradients(value, params):
    return torch.autograd.grad(value, [*params], retain_graph=True)


def parts(model, x):
    """The terms of the generator's loss, computed here."""
    z = model.encoder(x)
    e = model.quantiser.lookup(model.quantiser.nearest(z))
    made = model.decoder(z + (e - z).detach())
    near = (made - x).abs().mean() + model.config.perceptual_weight * model.seen.distance(x, made).mean()
    pull = 0.25 * (z - e.detach()).square().mean() + (z.detach() - e).square().mean()
    return near, pull, -model.discriminator(made).mean()


# ------------------------------------------------------------------------------------------------------------- the passport


def test_the_paper_recipe_makes_16x16_codes_of_256_pixels_with_the_released_counts():
    table = recipe.load("vqgan-imagenet256")["model"]
    spec = Spec(Field("image", (3, 256, 256), vocab=256, range=(-1.0, 1.0)))
    with torch.device("meta"):
        model = VQGAN.make({key: value for key, value in table.items() if key != "name"}, spec)
        assert model.encoder(torch.empty(1, 3, 256, 256)).shape == (1, 256, 16, 16)
    assert isinstance(model, Autoencoder) and model.latent == Field("codes", (16, 16), vocab=1024)
    served = sum(p.numel() for key, p in model.named_parameters() if not key.startswith(VQGAN.training_only))
    assert served == 72_141_699
    assert sum(p.numel() for p in model.discriminator.parameters()) == 2_765_633
    assert not model.adversarial(Turn("generator", 250_000, 10**6, Rng.batch(total=1)))
    assert model.adversarial(Turn("generator", 250_001, 10**6, Rng.batch(total=1)))


def test_lambda_is_the_ratio_of_gradients_at_the_decoders_last_weight_and_a_number():
    model, x = tiny().double(), images().double()
    losses = model({"x": x}, turn())
    near, pull, doubt = parts(model, x)
    last = model.decoder.body[-1].weight
    sizes = [gradients(term, [last])[0].norm() for term in (near, doubt)]
    ratio = sizes[0] / (sizes[1] + 1e-6)
    torch.testing.assert_close(losses["lambda"], ratio, rtol=1e-5, atol=0)
    assert not losses["lambda"].requires_grad and 1e-3 < ratio < 1e3
    torch.testing.assert_close(losses["loss"], near + pull + 0.8 * ratio.detach() * doubt)
    mine = [*model.encoder.parameters(), *model.decoder.parameters()]
    expected = gradients(near + pull + 0.8 * ratio.detach() * doubt, mine)
    for got, want in zip(gradients(losses["loss"], mine), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_lambda_is_at_most_ten_thousand_and_without_gradients_there_is_none():
    model, x = tiny(perceptual_weight=100), images()
    for p in model.discriminator.parameters():
        p.data.mul_(0)
    assert float(model({"x": x}, turn())["lambda"]) == 1e4
    with torch.no_grad():
        assert float(model({"x": x}, turn())["lambda"]) == 0


def test_before_the_start_it_is_a_vqvae_with_a_perceptual_term_and_the_discriminator_rests():
    model, x = tiny().double(), images().double()
    losses = model({"x": x}, turn(step=49))
    near, pull, _ = parts(model, x)
    torch.testing.assert_close(losses["loss"], near + pull)
    assert "lambda" not in losses and losses["gencli_features"] > 0
    assert "gencli_features" not in tiny(perceptual_weight=0)({"x": images()}, turn())
    for step, lead, learns in ((47, 0.02, False), (48, 0.02, True), (49, 0, False), (50, 0, True), (40, 10, True)):
        model = tiny(disc_lead=lead)
        model({"x": images()}, turn("discriminator", step))["loss"].backward()
        moved = any(p.grad is not None and p.grad.any() for p in model.discriminator.parameters())
        assert moved == learns, (step, lead)
    assert not tiny(disc_weight=0).adversarial(turn(step=99))


def test_the_discriminators_loss_is_the_hinge():
    model, x = tiny().double(), images().double()
    losses = model({"x": x}, turn("discriminator"))
    real, fake = model.discriminator(x), model.discriminator(model.decode(model.encode(x)))
    torch.testing.assert_close(losses["loss"], (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2)
    torch.testing.assert_close(losses["each"].mean(), losses["loss"])


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_each_phase_moves_its_own_side_by_its_own_gradient(codebook):
    tables = merge(smoke("vqgan"), {"model": {"codebook": codebook}, "train": {"lr": 0.01, "precision": "fp32"}})
    data = opened(tables["data"])
    one = of_run(Run.build(tables, data.spec), data.split("train"), parse(TrainConfig, tables["train"], "train"))
    batches = one._micro_batches()
    generator, discriminator = one.phases
    sides = {"generator": ("encoder.", "decoder.", "quantiser.", "watch."), "discriminator": ("discriminator.",)}
    for phase in (generator, discriminator, generator):
        before, fresh = copy.deepcopy(one.model.state_dict()), copy.deepcopy(one.model)
        one._take_turn(phase, batches)
        moved = {key for key, value in one.model.state_dict().items() if not torch.equal(value, before[key])}
        assert moved and all(key.startswith(sides[phase.name]) for key in moved), moved
        assert codebook == "gradient" or phase is discriminator or "quantiser.codebook" in moved
        rows, _, batch = batches[0]
        for p in fresh.parameters():
            p.grad = None
        fresh.requires_grad_(True)
        fresh(batch, one._turn(phase, rows))["loss"].backward()  # nothing is left over from the other phase
        for (name, p), q in zip(one.model.named_parameters(), fresh.parameters(), strict=True):
            if name.startswith(sides[phase.name]):
                torch.testing.assert_close(p.grad, q.grad)


# --------------------------------------------------------------------------------------------------------------- perceptual


def test_the_bundled_distance_is_that_of_unit_features_by_the_same_network_as_the_metrics():
    net, seen = features.load_network(BUNDLED).eval(), Perceptual("gencli", IMAGES.x)
    a, b = images(3), images(3, 1)
    taken = []
    for i in (2, 8, 14, 17):
        net.body[i].register_forward_hook(lambda _, __, made: taken.append(F.normalize(made, dim=1)))
    for x in (a, b):
        net.features(x / 2 + 0.5)
    assert [h.shape[-1] for h in taken] == [28, 14, 7, 4] * 2
    expected = torch.stack([(taken[i] - taken[i + 4]).square().sum(1).mean((1, 2)) for i in range(4)]).mean(0)
    torch.testing.assert_close(seen(a, b), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen(a, a), torch.zeros(3), rtol=0, atol=1e-5)
    with pytest.raises(GencliError, match="1 or 3 channels, these have 2"):
        Perceptual("gencli", Field("image", (2, 16, 16), range=(-1.0, 1.0)))


def test_it_is_no_part_of_the_model_and_a_missing_file_matters_in_training_only(tmp_path):
    model = tiny()
    assert not [key for key in model.state_dict() if "distance" in key or "seen" in key]
    lost = tiny(perceptual=str(tmp_path / "absent.safetensors"))
    assert lost.eval().reconstruct(images(2)).shape == (2, 1, 16, 16)
    with pytest.raises(GencliError, match=r"absent.safetensors is missing"):
        lost({"x": images()}, turn())


# ------------------------------------------------------------------------------------------------------------ in a long run


def test_a_reconstruction_that_becomes_worse_is_warned_of_once():
    model = tiny(disc_start=10)
    told = []
    for step in range(3 * MEMORY):
        model.watch.see(torch.tensor(0.1 if step < 20 else 0.2), 8)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.after_step(turn("discriminator", step))
            model.after_step(turn(step=step))
        told += [(step, str(w.message)) for w in caught]
    assert len(told) == 1 and 20 + 60 < told[0][0] < 20 + 80, "half of the way is ln 2 times the memory"
    assert "1.5 times as far as before the adversarial term" in told[0][1]
    assert 1.8 < float(model.watch.jump()) < 2 and float(model.watch.before) == pytest.approx(0.1)
    again = tiny(disc_start=10, seed=1)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.watch.jump(), model.watch.jump())


def test_initialise_places_the_codes_and_a_saved_run_has_no_discriminator(tmp_path):
    model = tiny()
    model.initialise(itertools.repeat({"x": images(32)}), 64, Rng.batch("init", total=1))
    assert model({"x": images(32)}, turn(n=32))["batch_perplexity"] > 8
    run = Run.load(trained(tmp_path, merge(smoke("vqgan"), {"train": {"steps": 4}})))
    x = run.encode(opened(run.config["recipe"]["data"]).split("test").batch(torch.arange(4)), Rng.rows(range(4)))["x"]
    codes = run.model.encode(x)
    assert codes.shape == (4, 2, 2) and torch.equal(run.model.decode(codes), run.model.reconstruct(x))
