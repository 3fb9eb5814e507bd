"""WAE: the kernel estimate, what the penalty is about, the plain autoencoder at λ = 0, and codes of digits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from tiny import opened
from torch import Tensor
from torch.nn import functional as F

from gencli import recipe
from gencli.core import Autoencoder, Field, LatentVariable, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.metrics import _mmd
from gencli.models.vae.wae import WAE
from gencli.nn.mmd import SCALES, multiquadratics, unbiased_mmd

IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=10)})
POINTS = Spec(Field("points", (3,)))
NETS = {key: {"name": "mlp", "width": 24, "activation": "relu"} for key in ("encoder", "decoder", "discriminator")}


def tiny(spec: Spec = IMAGES, seed: int = 0, **settings: object) -> WAE:
    torch.manual_seed(seed)
    return WAE.make({"dim": 4, **NETS, **settings}, spec)


def images(n: int) -> Tensor:
    return torch.randint(17, (n, *IMAGES.x.shape), generator=torch.Generator().manual_seed(0)) / 8.0 - 1


def turn(phase: str, n: int, key: int = 0) -> Turn:
    return Turn(phase, 0, 10, Rng.batch("wae", key, total=n))


def normal(seed: int, n: int = 200, dim: int = 5) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --------------------------------------------------------------------------------------------------------------- the estimate


def test_the_estimate_is_that_of_the_metric_with_the_released_kernel() -> None:
    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        square = np.square(x[:, None] - y[None]).sum(2)
        return sum(2 * 5 * s / (2 * 5 * s + square) for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0))

    x, y = normal(0), 1.3 * normal(1) + 0.2
    expected = _mmd.unbiased(kernel, x.numpy(), y.numpy())
    assert float(unbiased_mmd(x, y, 10.0)) == pytest.approx(expected, rel=1e-10) and expected > 1e-3
    assert multiquadratics(x, x, 10.0).diagonal().tolist() == pytest.approx([len(SCALES)] * 200)


def test_of_two_samples_of_one_distribution_it_is_zero_on_average_and_grows_with_a_shift() -> None:
    made = torch.stack([unbiased_mmd(normal(2 * i), normal(2 * i + 1), 10.0) for i in range(30)])
    error = float(made.std()) / math.sqrt(30)
    assert abs(float(made.mean())) < 3 * error and (made < 0).any(), "an unbiased estimate is as often below 0"
    with_pairs_of_itself = 2 * len(SCALES) / 200  # what a biased estimate adds, nearly
    assert with_pairs_of_itself > 10 * error
    means = []
    for shift in (0.0, 0.25, 0.5, 1.0, 2.0):
        means.append(
            torch.stack([unbiased_mmd(normal(2 * i) + shift, normal(2 * i + 1), 10.0) for i in range(4)]).mean()
        )
    assert all(after > before for before, after in itertools.pairwise(means)), means
    assert means[1] > 10 * error


def test_far_codes_still_feel_the_prior() -> None:
    pull = []
    for kernel in (multiquadratics, lambda x, y, c: (-torch.cdist(x, y).square() / c).exp()):
        z = (normal(0, 50) + 60).requires_grad_()
        (grad,) = torch.autograd.grad(-2 * kernel(z, normal(1, 50), 10.0).mean(), z)
        pull.append(float(grad.abs().max()))
    assert pull[0] > 1e-6 > 1e-12 > pull[1], "a Gaussian kernel has let go of them"


# ----------------------------------------------------------------------------------------------------------------- the penalty


@pytest.mark.parametrize("match", ["mmd", "gan"])
def test_with_lambda_zero_it_is_the_plain_autoencoder(match) -> None:
    model, x = tiny(match=match, strength=0.0), images(6)
    loss = model.loss({"x": x}, turn("autoencoder", 6))["loss"]
    plain = 0.05 * (x - (2 * torch.sigmoid(model.decoder(model.encoder(x))) - 1)).square().flatten(1).sum(1).mean()
    torch.testing.assert_close(loss, plain)
    params = [*model.encoder.parameters(), *model.decoder.parameters()]
    for mine, theirs in zip(*(torch.autograd.grad(value, params) for value in (loss, plain)), strict=True):
        torch.testing.assert_close(mine, theirs)
    with_penalty = tiny(match=match, strength=10.0).loss({"x": x}, turn("autoencoder", 6))["loss"]
    assert (with_penalty - plain).detach().abs() > 1e-3


def test_the_loss_adds_up_and_the_penalty_moves_the_encoder_alone() -> None:
    model, x = tiny(), images(8)
    losses = model.loss({"x": x, "label": torch.zeros(8, dtype=torch.long)}, turn("autoencoder", 8))
    torch.testing.assert_close(losses["loss"], losses["recon"] + 10 * losses["mmd"])
    drawn = turn("autoencoder", 8).rng.at("prior").normal((8, 4))
    mmd = model.mmd(model.encode(x), drawn)
    torch.testing.assert_close(losses["mmd"], mmd.detach())
    grads = torch.autograd.grad(mmd, [*model.encoder.parameters(), *model.decoder.parameters()], allow_unused=True)
    encoders = len([*model.encoder.parameters()])
    assert all(g is not None for g in grads[:encoders]) and all(g is None for g in grads[encoders:])
    assert model.couples and "each" not in losses and model.spec.cond == {}


def test_the_penalty_is_on_all_codes_together_so_that_one_code_may_be_a_point() -> None:
    model = tiny(POINTS, dim=3).double()
    codes = normal(0, 500, 3)  # each without spread of its own, together normal
    assert abs(float(model.mmd(codes, normal(1, 500, 3)))) < 0.02
    collapsed = model.mmd(codes[:1].expand(500, 3) + 1e-3 * codes, normal(1, 500, 3))
    assert collapsed > 0.5, "while one point for all items is far from the prior"
    x = normal(2, 4, 3)
    assert torch.equal(model.code(x, turn("autoencoder", 4).rng), model.encode(x))
    noisy = tiny(POINTS, dim=3, posterior="gaussian").double()
    assert not torch.equal(noisy.code(x, turn("autoencoder", 4).rng), noisy.encode(x))
    assert noisy.encode(x).shape == (4, 3)


def test_the_discriminators_turn_and_the_autoencoders() -> None:
    model, x, ones = tiny(match="gan", spread=2.0), images(5), torch.ones(5)
    assert [phase.name for phase in model.phases()] == ["autoencoder", "discriminator"] and not model.couples
    losses = model.loss({"x": x}, turn("discriminator", 5))
    drawn = 2 * turn("discriminator", 5).rng.at("prior").normal((5, 4))
    real, fake = (model.discriminator(z).flatten() for z in (drawn, model.encode(x)))
    expected = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, 0 * ones)
    torch.testing.assert_close(losses["loss"], expected)
    others = [*model.encoder.parameters(), *model.decoder.parameters()]
    assert all(g is None for g in torch.autograd.grad(losses["loss"], others, allow_unused=True))
    losses = model.loss({"x": x}, turn("autoencoder", 5))
    torch.testing.assert_close(losses["fooling"], F.binary_cross_entropy_with_logits(fake, ones).detach())
    torch.testing.assert_close(losses["loss"], losses["recon"] + 10 * losses["fooling"])
    assert not hasattr(tiny(), "discriminator"), "which the kernel needs not"


def test_one_item_has_no_pairs() -> None:
    with pytest.raises(GencliError, match="compares pairs of items, a micro-batch has 1"):
        tiny().loss({"x": images(1)}, turn("autoencoder", 1))
    assert torch.isfinite(tiny(match="gan").loss({"x": images(1)}, turn("autoencoder", 1))["loss"])


def test_what_it_offers() -> None:
    model = tiny(spread=3.0)
    assert isinstance(model, Autoencoder) and isinstance(model, LatentVariable) and model.latent.shape == (4,)
    assert torch.equal(model.reconstruct(images(2)), model.decode(model.encode(images(2))))
    assert model.decode(100 * torch.ones(2, 4)).abs().max() <= 1
    assert float(model.prior(4000, Rng.rows(range(4000))).std()) == pytest.approx(3, rel=0.05)
    assert tiny(POINTS).decode(100 * torch.ones(2, 4)).abs().max() > 1, "points have no range"
    with pytest.raises(GencliError, match="wae needs continuous data"):
        tiny(Spec(Field("codes", (4,), vocab=9)))


def test_the_released_constants() -> None:
    settings = recipe.load("wae-mnist")
    assert (settings["model"]["strength"], settings["model"]["dim"]) == (10.0, 8)
    assert settings["model"]["cost"] == pytest.approx(0.05 / 4) and SCALES == (0.1, 0.2, 0.5, 1, 2, 5, 10)
    assert tiny(match="gan", discriminator={"name": "mlp"}).config.discriminator.config.layers == 4


# ------------------------------------------------------------------------------------------------------------- what is learnt


def test_codes_of_digits_come_near_the_prior_and_without_the_penalty_they_do_not() -> None:
    data = opened({"name": "digits", "image_size": 8})
    x, held = (torch.from_numpy(data.split(name).x).float() / 127.5 - 1 for name in ("train", "test"))
    apart, recon = {}, {}
    for strength in (10.0, 0.0):
        wide = {"name": "mlp", "width": 64, "layers": 2, "activation": "relu"}
        model = tiny(strength=strength, encoder=wide, decoder=wide)
        optimiser = torch.optim.Adam(model.parameters(), 3e-3, (0.5, 0.9))
        for step in range(150):
            chosen = torch.arange(step * 128, step * 128 + 128) % len(x)
            optimiser.zero_grad()
            model.loss({"x": x[chosen]}, turn("autoencoder", 128, step))["loss"].backward()
            optimiser.step()
        with torch.no_grad():
            z = model.encode(held)
            apart[strength] = float(unbiased_mmd(z, model.prior(len(z), Rng.rows(range(len(z)))), 8.0))
            recon[strength] = float((model.reconstruct(held) - held).square().mean())
    assert apart[10.0] < 0.25 * apart[0.0] and apart[0.0] > 0.1, apart
    assert recon[10.0] < 0.6 * float(held.var(0).mean()), recon
