"""AAE: who learns from what, the two losses, the priors in the plane, and codes that have the prior's distribution."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from tiny import opened, smoke, trained
from torch import Tensor
from torch.nn import functional as F

from gencli import recipe
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Autoencoder, Batch, Field, LatentVariable, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.aae import AAE, ACROSS, ALONG, OUTMOST, RADIUS, THICKNESS, TURNS, petal, roll

IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=10)})
NETS = {key: {"name": "mlp", "width": 24, "activation": "relu"} for key in ("encoder", "decoder", "discriminator")}
PHASES = ("reconstruction", "discriminator", "encoder")
PETALS = {"prior": "mixture", "dim": 2, "labels": True}


def tiny(spec: Spec = IMAGES, seed: int = 0, **settings: object) -> AAE:
    torch.manual_seed(seed)
    return AAE.make({"dim": 4, **NETS, **settings}, spec)


def images(n: int) -> Batch:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(17, (n, *IMAGES.x.shape), generator=g) / 8.0 - 1
    return {"x": x, "label": torch.arange(n) % 10}


def turn(phase: str, n: int, key: int = 0) -> Turn:
    return Turn(phase, 0, 10, Rng.batch("aae", key, total=n))


# ----------------------------------------------------------------------------------------------------- who learns from what


@pytest.mark.parametrize("settings", [{}, PETALS, {"posterior": "gaussian"}])
def test_the_decoder_has_no_adversarial_gradient_and_the_discriminator_none_of_the_reconstruction(settings) -> None:
    model, batch = tiny(**settings), images(6)
    moved = {}
    for phase in PHASES:
        loss = model.loss(batch, turn(phase, 6))["loss"]
        params = dict(model.named_parameters())
        grads = torch.autograd.grad(loss, [*params.values()], allow_unused=True)
        found = {
            name.split(".")[0] for name, g in zip(params, grads, strict=True) if g is not None and g.abs().sum() > 0
        }
        moved[phase] = found
    assert moved["reconstruction"] == {"encoder", "decoder"}
    assert moved["discriminator"] == {"discriminator"}
    assert moved["encoder"] == {"encoder", "discriminator"}, (
        "the discriminator is asked, but not trained, in this phase"
    )
    trained_in = {phase.name: {id(p) for m in phase.modules for p in m.parameters()} for phase in model.phases()}
    assert list(trained_in) == list(PHASES)
    theirs = {id(p) for p in model.discriminator.parameters()}
    assert not theirs & (trained_in["reconstruction"] | trained_in["encoder"])
    assert not {id(p) for p in model.decoder.parameters()} & (trained_in["discriminator"] | trained_in["encoder"])


def test_the_losses_are_squared_errors_and_binary_cross_entropies() -> None:
    model, batch = tiny(spread=3.0), images(5)
    x, ones = batch["x"], torch.ones(5)
    with torch.no_grad():
        z = model.encode(x)
        made = -1 + 2 * torch.sigmoid(model.decoder(z))
        losses = {phase: model.loss(batch, turn(phase, 5)) for phase in PHASES}
        drawn = 3 * turn("discriminator", 5).rng.at("prior").normal((5, 4))
        real, fake = (model.discriminator(each).flatten() for each in (drawn, z))
    torch.testing.assert_close(losses["reconstruction"]["each"], (x - made).square().flatten(1).sum(1))
    expected = F.binary_cross_entropy_with_logits(real, ones) + F.binary_cross_entropy_with_logits(fake, 0 * ones)
    torch.testing.assert_close(losses["discriminator"]["loss"], expected)
    torch.testing.assert_close(losses["encoder"]["loss"], F.binary_cross_entropy_with_logits(fake, ones))
    right = ((real > 0).sum() + (fake < 0).sum()) / 10
    torch.testing.assert_close(losses["discriminator"]["accuracy"], right)


def test_a_gaussian_posterior_is_drawn_from_and_shown_by_its_mean() -> None:
    model, x = tiny(posterior="gaussian"), images(4)["x"]
    mean, log_var = model.encoder(x).chunk(2, 1)
    noise = turn("encoder", 4).rng.at("posterior").normal((4, 4))
    torch.testing.assert_close(model.code(x, turn("encoder", 4).rng), mean + (log_var / 2).exp() * noise)
    assert torch.equal(model.encode(x), mean)
    plain = tiny()
    assert torch.equal(plain.code(x, turn("encoder", 4).rng), plain.encode(x))


def test_the_discriminator_hears_the_class_and_the_autoencoder_does_not() -> None:
    model, batch = tiny(**PETALS), images(6)
    other = {**batch, "label": (batch["label"] + 3) % 10}
    with torch.no_grad():
        for phase in PHASES:
            one, two = (model.loss(b, turn(phase, 6))["loss"] for b in (batch, other))
            assert torch.equal(one, two) == (phase == "reconstruction"), phase
    assert tiny().spec.cond == {} and set(model.spec.cond) == {"label"}
    assert isinstance(model, Autoencoder) and isinstance(model, LatentVariable)
    assert model.training_only == ("discriminator.",)


def test_a_decoder_that_is_told_the_class_leaves_the_style_to_the_code() -> None:
    model, batch = tiny(classes=True), images(6)
    other = {**batch, "label": (batch["label"] + 3) % 10}
    with torch.no_grad():
        for phase in PHASES:
            one, two = (model.loss(b, turn(phase, 6))["loss"] for b in (batch, other))
            assert torch.equal(one, two) == (phase != "reconstruction"), phase
        z, first = model.prior(6, Rng.rows(range(6))), model.decoder.body[0]
        beside = torch.cat([z, F.one_hot(batch["label"], 11).to(z)], 1)  # the paper's one-hot vector beside the code
        h = (beside @ torch.cat([first.weight, model.decoder.label.weight.T], 1).T + first.bias).relu()
        by_hand = -1 + 2 * model.decoder.body[2](h).sigmoid().view(6, *IMAGES.x.shape)
        torch.testing.assert_close(model.decode(z, label=batch["label"]), by_hand)
    assert not isinstance(model, Autoencoder) and isinstance(model, LatentVariable)


# ---------------------------------------------------------------------------------------------------------------- the priors


def test_petals_lie_along_rays_of_the_right_size() -> None:
    noise = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for k in (0, 3, 7):
        z = petal(torch.full((40_000,), k), noise, 10)
        angle = 2 * math.pi * k / 10
        ray = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
        across = torch.stack([-ray[1], ray[0]])
        assert (z.mean(0) - RADIUS * ray).abs().max() < 0.01
        assert float((z @ ray).std()) == pytest.approx(ALONG, rel=0.02)
        assert float((z @ across).std()) == pytest.approx(ACROSS, rel=0.02)


def test_the_roll_is_even_over_its_area_and_classes_follow_one_another() -> None:
    g = torch.Generator().manual_seed(0)
    part, u = torch.randint(10, (40_000,), generator=g), torch.rand(40_000, generator=g, dtype=torch.float64)
    z = roll(part, u, torch.zeros(40_000, 2), 10)
    share = (z.norm(dim=1) / OUTMOST).square()
    assert torch.equal((share * 10).floor().clamp(0, 9).long(), part)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.01) and float(share.std()) == pytest.approx(
        12**-0.5, rel=0.02
    )
    angle = torch.atan2(z[:, 1], z[:, 0]) - 2 * math.pi * TURNS * share.sqrt()
    assert (torch.remainder(angle + 1, 2 * math.pi) - 1).abs().max() < 1e-6
    noisy = roll(part, u, torch.randn(40_000, 2, generator=g), 10) - z
    assert float(noisy.std()) == pytest.approx(THICKNESS, rel=0.02)


@pytest.mark.parametrize("prior", ["normal", "mixture", "swiss-roll"])
def test_a_draw_is_its_seeds_own(prior) -> None:
    model = tiny(prior=prior, dim=2, spread=5.0)
    many = model.prior(6, Rng.rows(range(6)))
    assert many.shape == (6, 2) and torch.equal(model.prior(2, Rng.rows([3, 4])), many[3:5])
    if prior == "normal":
        assert float(model.prior(4000, Rng.rows(range(4000))).std()) == pytest.approx(5, rel=0.05)


def test_a_class_has_its_part_and_without_one_all_are_drawn() -> None:
    model = tiny(**PETALS)

    def nearest(z: Tensor) -> Tensor:
        return (torch.atan2(z[:, 1], z[:, 0]) / (2 * math.pi / 10)).round().long() % 10

    label = torch.arange(200) % 10
    asked = nearest(model.prior(200, Rng.rows(range(200)), label=label))
    assert (asked == label).float().mean() > 0.95
    counts = torch.bincount(nearest(model.prior(1000, Rng.rows(range(1000)))), minlength=10)
    assert counts.min() > 60 and (counts - 100).abs().max() < 40


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(GencliError, match="a mixture prior is in the plane, dim is 4"):
        tiny(prior="mixture")
    with pytest.raises(GencliError, match="normal has none"):
        tiny(labels=True)
    for setting, given in (("labels", PETALS), ("classes", {"classes": True})):
        with pytest.raises(GencliError, match="the data have no labels") as caught:
            tiny(Spec(Field("points", (2,))), **given)
        assert f"leave --{setting} out" in caught.value.hint
    with pytest.raises(GencliError, match="labels and classes are both true"):
        tiny(classes=True, **PETALS)
    with pytest.raises(GencliError, match="trained with the condition 'label', which was not given"):
        tiny(classes=True).reconstruct(images(2)["x"])
    with pytest.raises(GencliError, match="aae needs continuous data, got codes of 9 values"):
        tiny(Spec(Field("codes", (4,), vocab=9)))


def test_the_papers_networks_have_their_sizes() -> None:
    tables = recipe.load("aae-mnist")["model"]
    spec = Spec(Field("image", (1, 28, 28), vocab=256, range=(-1.0, 1.0)))
    with torch.device("meta"):
        model = AAE.make({key: value for key, value in tables.items() if key != "name"}, spec)
    assert model.phases()[1].optim == {} and tiny(adversarial_lr=0.1).phases()[1].optim == {"lr": 0.1}

    def mlp(ins: int, outs: int) -> int:
        return (ins + 1) * 1000 + 1001 * 1000 + 1001 * outs

    sizes = {name: sum(p.numel() for p in net.parameters()) for name, net in model.named_children()}
    assert sizes == {"encoder": mlp(784, 8), "decoder": mlp(8, 784), "discriminator": mlp(8, 1)}


# ------------------------------------------------------------------------------------------------------------- what is learnt


def told_apart(z: np.ndarray, w: np.ndarray) -> float:
    """The accuracy with which a classifier that saw half of both sets tells the other halves apart."""
    x, y = np.concatenate([z, w]), np.repeat([0, 1], [len(z), len(w)])
    order = np.random.default_rng(0).permutation(len(y))
    half = len(y) // 2
    fit, test = order[:half], order[half:]
    return float(KNeighborsClassifier(25).fit(x[fit], y[fit]).score(x[test], y[test]))


def codes_and_prior(model: AAE, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        z = model.encode(batch["x"])
        w = model.prior(len(z), Rng.rows(range(len(z))), **{key: batch[key] for key in model.spec.cond})
    return z.numpy(), w.numpy()


def test_codes_of_a_toy_come_to_look_like_the_prior_and_without_the_encoders_turn_they_do_not() -> None:
    """Normal points far from the centre and of unequal spread; an affine encoder is enough."""
    points = torch.randn(2000, 2, generator=torch.Generator().manual_seed(0))
    x = points * torch.tensor([2.0, 0.5]) + torch.tensor([3.0, -2.0])
    affine, small = {"name": "mlp", "layers": 0}, {"name": "mlp", "layers": 1, "width": 24, "activation": "relu"}
    accuracy, recon = {}, {}
    for turns in (PHASES, ("reconstruction",)):
        model = tiny(Spec(Field("points", (2,))), dim=2, encoder=affine, decoder=affine, discriminator=small)
        optimisers = {
            p.name: torch.optim.Adam([q for m in p.modules for q in m.parameters()], 2e-2, (0.5, 0.9))
            for p in model.phases()
        }
        for step in range(500):
            chosen = torch.arange(step * 128, step * 128 + 128) % 2000
            for phase in turns:
                optimisers[phase].zero_grad()
                model.loss({"x": x[chosen]}, turn(phase, 128, step))["loss"].backward()
                optimisers[phase].step()
        accuracy[len(turns)] = told_apart(*codes_and_prior(model, {"x": x}))
        with torch.no_grad():
            recon[len(turns)] = float((model.reconstruct(x) - x).square().sum(1).mean())
    assert accuracy[3] < 0.65 < 0.9 < accuracy[1], accuracy
    assert recon[3] < 0.2, "of a variance of 4.25"


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["mixture", "swiss-roll"])
def test_codes_of_digits_have_the_priors_distribution(prior, tmp_path) -> None:
    tables = merge(recipe.load("aae-petals"), {"model": {"prior": prior}})
    run = Run.load(trained(tmp_path, tables))
    control = Run.load(trained(tmp_path, merge(smoke("aae-petals"), {"model": {"prior": prior}})))
    for name in ("train", "test"):
        for one, of in ((run, tables), (control, smoke("aae-petals"))):
            items = opened(of["data"]).split(name)
            batch = items.batch(torch.arange(len(items)))
            batch = one.encode(batch, Rng.rows(range(len(items))))
            accuracy = told_apart(*codes_and_prior(one.model, batch))
            if one is run:
                assert accuracy <= 0.55, (name, accuracy)
            else:
                assert accuracy > 0.8, "an untrained encoder's are told apart"
