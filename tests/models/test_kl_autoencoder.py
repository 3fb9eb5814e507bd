"""KL autoencoder: released counts, its loss in parts, latents of variance 1, and a diffusion model over it."""

import pytest
import torch
from tiny import opened, shaken, smoke, trained
from torch.nn import functional as F

from gencli import recipe
from gencli.bundle import Run
from gencli.config import choose, merge
from gencli.core import Autoencoder, Field, Rng, Spec, Turn
from gencli.models.vae.kl_autoencoder import KLAutoencoder, Spread

IMAGES = Spec(Field("image", (1, 16, 16), vocab=256, range=(-1.0, 1.0)))
HALVES = {"width": 8, "residual_width": 4, "residual_blocks": 1}
PARTS = {"encoder": {"name": "conv-encoder", **HALVES}, "decoder": {"name": "conv-decoder", **HALVES}}
PATCH = {"name": "patch-discriminator", "width": 8, "layers": 1, "norm": "group"}


def tiny(**settings):
    torch.manual_seed(0)
    model = KLAutoencoder.make({"dim": 3, **PARTS, "discriminator": PATCH, **settings}, IMAGES)
    shaken(model)
    return model


def images(n=8, seed=0):
    return torch.rand((n, *IMAGES.x.shape), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def turn(phase="generator", step=90, n=8):
    return Turn(phase, step, 100, Rng.batch("t", step, total=n))


@pytest.mark.parametrize(
    ("mults", "dim", "attention", "count"),
    [([1, 2, 4], 3, [], 55_312_063), ([1, 2, 4, 4], 4, [], 83_653_863), ([1, 1, 2, 2, 4], 16, [16], 69_610_963)],
    ids=["f4", "f8", "f16"],
)
def test_the_parameters_are_those_of_the_released_models(mults, dim, attention, count):
    net = {"width": 128, "mults": mults, "blocks": 2, "attention": attention}
    parts = {
        "encoder": {"name": "vqgan-encoder", "z": 2 * dim, **net},
        "decoder": {"name": "vqgan-decoder", "z": dim, **net},
    }
    if dim == 4:
        table = recipe.load("kl-autoencoder-f8")["model"]
        parts = {key: table[key] for key in parts}
    with torch.device("meta"):
        model = choose("models", {"name": "kl-autoencoder", "dim": dim, **parts}).build(
            Spec(Field("image", (3, 256, 256), range=(-1.0, 1.0)))
        )
    assert sum(p.numel() for half in (model.encoder, model.decoder) for p in half.parameters()) == count
    assert model.latent.shape == (dim, *(256 >> (len(mults) - 1),) * 2) and model.latent.vocab is None


def test_the_generators_loss_is_its_parts():
    model, x = tiny(kl_weight=0.3, disc_start=0, perceptual_weight=0.2), images()
    losses = model.loss({"x": x}, turn())
    mean, log_variance = model.encoder(x).chunk(2, 1)
    z = mean + (log_variance / 2).exp() * turn().rng.at("latent").normal(mean.shape)
    made = model.decoder(z)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    kl = torch.distributions.kl_divergence(normal, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    near = (made - x).abs().mean() + 0.2 * model.seen.distance(x, made).mean()
    doubt = -model.discriminator(made).mean()
    last = [p for p in model.decoder.parameters() if p.ndim > 1][-1]
    sizes = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (near, doubt)]
    balance = (sizes[0] / (sizes[1] + 1e-4)).clamp(max=1e4)
    wanted = near + 0.3 * kl.mean() / 256 + 0.5 * balance * doubt
    assert float(losses["kl"]) == pytest.approx(float(kl.mean().detach()), rel=1e-5)
    assert float(losses["loss"]) == pytest.approx(float(wanted.detach()), rel=1e-5)
    real, fake = model.discriminator(x), model.discriminator(model.reconstruct(x))
    hinge = (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2
    assert float(model.loss({"x": x}, turn("discriminator"))["loss"]) == pytest.approx(float(hinge.detach()), rel=1e-5)


def test_what_is_encoded_has_variance_1_and_is_decoded_as_if_nothing_were():
    model, x = tiny().train(), images(64)
    for step in range(30):
        model.loss({"x": x}, turn(step=step, n=64))
        model.after_step(turn(step=step))
    mean, _ = model.moments(x)
    assert float(model.encode(x).detach().std()) == pytest.approx(1, rel=0.01)
    assert torch.allclose(model.encode(x) * model.spread.deviation, mean, atol=1e-6)
    assert torch.allclose(model.decode(model.encode(x)), model.decoder(mean), atol=1e-5)


def test_the_running_deviation_is_that_of_all_that_was_seen_and_forgets():
    spread, parts = Spread(), [torch.randn(10, 3) * (i + 1) for i in range(4)]
    for part in parts:
        spread.see(part[:4])
        spread.see(part[4:])
        spread.update()
    pooled = torch.stack([part.var(unbiased=False) for part in parts]).mean().sqrt()
    assert float(spread.deviation) == pytest.approx(float(pooled), rel=1e-5)
    for _ in range(2000):
        spread.see(torch.tensor([-2.0, 2.0]))
        spread.update()
    assert float(spread.deviation) == pytest.approx(2, rel=1e-3)


def test_a_diffusion_model_is_trained_on_latents_and_drawn_as_images(tmp_path):
    codec = trained(tmp_path, merge(smoke("kl-autoencoder"), {"train": {"steps": 30}}))
    assert isinstance(Run.load(codec).model, Autoencoder)
    run = Run.load(trained(tmp_path, smoke("ddpm"), codec_run=Run.load(codec)))
    assert run.spec.x.kind == "latent" and run.spec.x.shape == (4, 2, 2)
    made = run.sample(Rng.rows(range(3)), {"label": torch.tensor([1, 2, 3])}, run.sampler("ddim", {"steps": 2}))["x"]
    assert made.dtype == torch.uint8 and made.shape == (3, 1, 8, 8)
    latents = run.encode(
        opened(run.config["recipe"]["data"]).split("train").batch(torch.arange(200)), Rng.rows([0] * 200)
    )["x"]
    assert 0.8 < float(latents.std()) < 1.25


def test_it_comes_nearer_than_the_mean_image_and_an_untrained_one_does_not(tmp_path):
    wide = {"width": 32, "residual_width": 16}
    table = merge(
        smoke("kl-autoencoder"),
        {"model": {"disc_weight": 0.0, "perceptual_weight": 0.0, "encoder": wide, "decoder": wide}},
    )
    ends = []
    for steps in (1, 250):
        more = {"steps": steps, "batch_size": 64, "lr": 5e-3}
        run = Run.load(trained(tmp_path, merge(table, {"train": more}), name=f"after-{steps}"))
        x = run.encode(
            opened(run.config["recipe"]["data"]).split("test").batch(torch.arange(150)), Rng.rows([0] * 150)
        )["x"]
        ends.append(float((run.model.reconstruct(x) - x).abs().mean()))
    mean = float((x - x.mean(0)).abs().mean())
    assert ends[1] < 0.75 * mean < mean < ends[0], (ends, mean)
