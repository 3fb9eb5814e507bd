"""The discrete VAE: DALL-E's counts and schedules, the logit-Laplace, and its loss term by term."""

import math

import pytest
import torch

from gencli import recipe
from gencli.core import Autoencoder, Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.dvae import DVAE, logit_laplace
from gencli.networks.dalle_decoder import DalleDecoder
from gencli.networks.dalle_encoder import DalleEncoder

IMAGES = Spec(Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)))
NET = {"width": 32, "groups": 2, "blocks": 1}


def tiny(spec=IMAGES, **settings):
    torch.manual_seed(0)
    parts = {"encoder": {"name": "dalle-encoder", **NET}, "decoder": {"name": "dalle-decoder", **NET, "first": 6}}
    model = DVAE.make({"codes": 12, **parts, **settings}, spec)
    for p in model.parameters():
        p.data = torch.randn_like(p) * (1.5 / max(p[0].numel(), 1) ** 0.5 if p.ndim > 1 else 0.3)
    return model


def images(n=8, seed=0):
    return torch.rand((n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) * 2 - 1


def turn(step=0, steps=100, n=8):
    return Turn("main", step, steps, Rng.batch("t", total=n))


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_dalles_recipe_has_the_released_networks_and_schedules():
    values = {key: value for key, value in recipe.load("dvae-dalle")["model"].items() if key != "name"}
    spec = Spec(Field("image", (3, 256, 256), vocab=256, range=(-1.0, 1.0)))
    with torch.device("meta"):
        model = DVAE.make(values, spec)
        assert DVAE.make({}, spec).config == model.config, "these are the defaults"
        assert model.encoder(torch.empty(1, 3, 256, 256)).shape == (1, 8192, 32, 32)
        assert model.decoder(torch.empty(1, 8192, 32, 32)).shape == (1, 6, 256, 256)
    assert count(model.encoder) == 53_786_240 and count(model.decoder) == 43_829_766
    assert isinstance(model, Autoencoder) and model.latent == Field("codes", (32, 32), vocab=8192)
    at = {step: turn(step, 3_000_000) for step in (0, 2500, 5000, 75_000, 150_000)}
    assert [model.weight(at[step]) for step in (0, 2500, 5000, 75_000)] == pytest.approx([0, 3.3, 6.6, 6.6])
    assert [model.temperature(at[step]) for step in (0, 75_000, 150_000)] == pytest.approx([1, 17 / 32, 1 / 16])
    assert tiny(tau_steps=0.5).temperature(turn(25)) == pytest.approx(17 / 32), "a share of training"


def test_the_logit_laplace_is_a_density_and_its_constant_that_of_laplace():
    v = torch.linspace(1e-7, 1 - 1e-7, 400_001, dtype=torch.float64)
    for mu, log_b in ((0.0, 0.0), (1.0, -1.0), (-2.0, -0.5)):
        p = logit_laplace(v, torch.tensor(mu).double(), torch.tensor(log_b).double()).exp()
        assert float(torch.trapezoid(p, v)) == pytest.approx(1, abs=2e-3)
    u = torch.tensor([0.3, 0.8]).double()
    laplace = torch.distributions.Laplace(0.4, 0.7).log_prob(u.logit())
    expected = laplace - (u * (1 - u)).log()
    torch.testing.assert_close(
        logit_laplace(u, torch.tensor(0.4), torch.tensor(0.7).log()), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("hard", [False, True])
def test_the_loss_is_dalles_over_the_items_numbers(hard):
    model, x = tiny(hard=hard, tau_steps=0.5, kl=2.0, kl_steps=0.2).double(), images().double()
    losses = model({"x": x}, turn(10))
    tau, beta = 1 / 16 + 15 / 16 * (1 + math.cos(math.pi / 5)) / 2, 1.0
    torch.testing.assert_close([float(losses["tau"]), float(losses["beta"])], [tau, beta])
    logits = model.encoder(x)
    u = turn().rng.at("gumbel").uniform(logits.shape).double()
    noisy = (logits - (-u.log()).log()) / tau
    y = torch.nn.functional.one_hot(noisy.argmax(1), 12).movedim(-1, 1).double() if hard else noisy.softmax(1)
    mu, log_b = model.decoder(y).split(1, 1)
    v = 0.8 * (x + 1) / 2 + 0.1
    log_p = -(v.logit() - mu).abs() / log_b.exp() - (2 * log_b.exp() * v * (1 - v)).log()
    q = logits.softmax(1)
    kl = (q * (12 * q).log()).sum((1, 2, 3))
    torch.testing.assert_close(losses["each"], (-log_p.sum((1, 2, 3)) + beta * kl) / 64)
    torch.testing.assert_close(losses["kl"], kl.mean() / 16)
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_reconstructions_are_of_the_likeliest_codes_and_inside_the_range():
    model, x = tiny(), images()
    codes = model.encode(x)
    assert codes.shape == (8, 4, 4) and torch.equal(codes, model.encoder(x).softmax(1).argmax(1))
    assert len(codes.unique()) > 3
    made = model.decode(codes)
    assert torch.equal(made, model.reconstruct(x)) and made.shape == x.shape
    assert made.min() >= -1 and made.max() <= 1 and made.std() > 0.1
    torch.testing.assert_close(model.shown(model.squeezed(x).logit()), x, rtol=0, atol=1e-5)


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(GencliError, match="dalle-decoder with 3 groups cannot make"):
        tiny(decoder={"name": "dalle-decoder", **NET, "groups": 3})
    with pytest.raises(GencliError, match=r"dvae needs images .* got points"):
        tiny(Spec(Field("points", (2,), range=(-1.0, 1.0))))


def test_blocks_start_near_the_identity_and_weights_with_their_fan_in():
    torch.manual_seed(0)
    encoder = DalleEncoder.make({"width": 64, "groups": 2}, IMAGES.x, Field("latent", (32, 4, 4)))
    decoder = DalleDecoder.make({"width": 64, "groups": 2}, Field("latent", (32, 4, 4)), IMAGES.x)
    assert encoder.body[1].gain == decoder.body[1].gain == 1 / 16
    weight = encoder.body[1].body[1].weight.detach()
    assert float(weight.std()) == pytest.approx((64 * 9) ** -0.5, rel=0.05)
    x = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder.body[1](x), x + encoder.body[1].body(x) / 16)
