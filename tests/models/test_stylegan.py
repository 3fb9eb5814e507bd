"""StyleGAN: the released count, styles as deviations and means, noise, mixing, truncation, growth."""

import pytest
import torch
from tiny import hashes, resumed, shaken, smoke, trained
from torch.nn.functional import softplus
from two_kinds import learned, turn

from gencli import recipe
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Field, Rng, Spec
from gencli.models.gan.stylegan import StyleGan
from gencli.networks._growing import Growth
from gencli.networks.stylegan_generator import After, adapted

X = Field("image", (1, 16, 16), vocab=256, range=(-1.0, 1.0))
NETS = {
    "generator": {"name": "stylegan-generator", "base": 32, "most": 6, "style": 5, "mapping": 2},
    "critic": {"name": "progan-critic", "base": 32, "most": 6},
}


def made(spec=None, seed=0, **settings):
    torch.manual_seed(seed)
    model = StyleGan.make({"latent": 4, "stay": 100, "fade": 50, **NETS, **settings}, spec or Spec(X))
    shaken(model)
    return model.double()


def images(n=8, seed=0):
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_the_recipe_has_the_released_count_and_settings():
    table = recipe.load("stylegan-1024")
    with torch.device("meta"):
        spec = Spec(Field("image", (3, 1024, 1024), vocab=256, range=(-1.0, 1.0)))
        model = StyleGan.make({key: value for key, value in table["model"].items() if key != "name"}, spec)
        assert StyleGan.make({}, spec).config == model.config, "these are the defaults"
    assert sum(p.numel() for p in model.generator.parameters()) == 26_219_627
    assert sum(p.numel() for p in model.critic.parameters()) == 23_087_249
    assert sum(p.numel() for p in model.generator.mapping.parameters()) == 2_101_248
    assert model.generator.layers == 18 and model.generator.grids[model.config.first] == (8, 8)
    assert (model.config.smooth, model.config.smooth_weight, model.config.mixing) == ("r1", 10.0, 0.9)
    assert table["train"]["steps"] * table["train"]["batch_size"] == 25_000_000
    assert table["train"]["ema_decay"] == pytest.approx(0.5 ** (32 / 10_000), abs=1e-6)


def test_a_layer_leaves_with_the_styles_deviation_and_mean():
    h = 5 + 3 * torch.randn(4, 6, 8, 8, dtype=torch.float64)
    scale, shift = torch.randn(2, 4, 6, 1, 1, dtype=torch.float64)
    found = adapted(h, scale, shift)
    torch.testing.assert_close(found.mean((2, 3)), shift[:, :, 0, 0], rtol=0, atol=1e-4)
    torch.testing.assert_close(found.std((2, 3), correction=0), scale.abs()[:, :, 0, 0], rtol=0, atol=1e-4)
    torch.manual_seed(0)
    layer, w = After(5, 6).double(), torch.randn(4, 5, dtype=torch.float64)
    style = layer.affine(w)
    made = layer(h, w, torch.zeros(4, 1, 8, 8).double())
    torch.testing.assert_close(made.mean((2, 3)), style[:, 6:], rtol=0, atol=1e-4)
    torch.testing.assert_close(made.std((2, 3), correction=0), (1 + style[:, :6]).abs(), rtol=0, atol=1e-4)


def test_without_noise_an_image_is_its_styles_and_noise_changes_little_of_it():
    model = made()
    model.seen_images.fill_(10**6)
    z, strengths = (
        model.prior(3, Rng.rows(range(3))).double(),
        [a.strength for a in model.modules() if isinstance(a, After)],
    )
    other = torch.cat([z[:, :4], torch.flip(z[:, 4:], [1])], 1)
    with torch.no_grad():
        assert not torch.allclose(model.decode(z), model.decode(other), atol=1e-3)
        for strength in strengths:
            strength.zero_()
        assert torch.equal(model.decode(z), model.decode(other)), "deterministic in w"
        assert not torch.allclose(model.decode(z)[0], model.decode(z)[1])
    assert len(strengths) == 6 and all(len(strength) in (2, 4, 6) for strength in strengths)


def test_mixing_with_the_same_style_is_nothing_and_keeps_the_layers_before_it():
    model, x = made(mixing=1.0), images(32)
    assert model.layers == 4, "8×8 first: two layers at each of two sides"
    rng = turn(n=32).rng
    mixed, one = model.mixed(x, rng), model.styles(model.prior(32, rng).to(x))
    first = (mixed["w"] != one["w"]).any(2).float().argmax(1)
    assert set(first.tolist()) == {1, 2, 3}, "only layers that draw are told another style"
    torch.testing.assert_close(model.drawn(one["w"].clone(), one["noise"]), model.decode(model.prior(32, rng).to(x)))
    seen = []
    hooks = [
        m.register_forward_hook(lambda *a: seen.append(a[2].detach())) for m in model.modules() if isinstance(m, After)
    ]
    row = int((first == 2).nonzero()[0])
    for styles in (one, mixed):
        model.drawn(styles["w"][row : row + 1], styles["noise"][row : row + 1])
    for hook in hooks:
        hook.remove()
    assert [torch.equal(a, b) for a, b in zip(seen[:4], seen[4:], strict=True)] == [True, True, False, False]


def test_truncation_ends_in_the_identity_and_in_the_mean_image():
    model = made()
    with torch.no_grad():
        z = model.prior(5, Rng.rows(range(5))).double()
        z[:, 4:] = z[:1, 4:]  # one noise
        torch.testing.assert_close(model.decode(model.truncate(z, 1.0)), model.decode(z), rtol=0, atol=1e-12)
        mean = model.decode(model.truncate(z, 0.0))
        torch.testing.assert_close(mean, mean[:1].expand(5, -1, -1, -1), rtol=0, atol=1e-12)
        assert model.decode(z).std(0).mean() > 1e-3


def test_growth_is_continuous():
    model = made()
    z = model.prior(8, Rng.rows(range(8))).double()
    with torch.no_grad():
        pictures = {}
        for seen in (99, 100, 149, 150):
            model.seen_images.fill_(seen)
            pictures[seen] = model.decode(z), model.growth, model.layers
        torch.testing.assert_close(pictures[100][0], pictures[99][0], rtol=0, atol=1e-12)
        step = (pictures[150][0] - pictures[149][0]).abs().max()
        assert 0 < step < 0.05 * (pictures[150][0] - pictures[99][0]).abs().max()
    assert [growth for _, growth, _ in pictures.values()] == [Growth(1), Growth(1, 0.0), Growth(1, 0.98), Growth(2)]
    assert [layers for *_, layers in pictures.values()] == [4, 6, 6, 6]


def test_losses_are_softplus_with_r1_at_what_is_shown_of_the_data():
    model, x = made(smooth_weight=3.0), images()
    losses, rng = model({"x": x}, turn()), turn().rng
    shown = model.real(x).requires_grad_()
    assert not torch.allclose(shown, x)
    (slope,) = torch.autograd.grad(model.score(shown).sum(), shown)
    each = softplus(-model.score(shown)) + softplus(model.score(model.samples(x, rng)))
    torch.testing.assert_close(losses["loss"], (each + 1.5 * slope.square().sum((1, 2, 3))).mean())
    for phase, other in (("critic", "generator"), ("generator", "critic")):
        model.zero_grad()
        for name in ("critic", "generator"):
            getattr(model, name).requires_grad_(name == phase)
        model({"x": x}, turn(phase))["loss"].backward()
        assert all(p.grad is None for p in getattr(model, other).parameters())


def test_every_phase_works_in_bf16():
    model, x = made().float(), images().float()
    model.seen_images.fill_(125)
    for phase in model.phases():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model({"x": x}, turn(phase.name))["loss"]
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(torch.isfinite(p.grad).all() for p in phase.modules[0].parameters() if p.grad is not None), (
            phase.name
        )


def test_a_resumed_run_is_the_uninterrupted_one_and_samples_as_it_has_grown(tmp_path):
    def tables(**train):
        return merge(smoke("stylegan"), {"model": {"stay": 8, "fade": 32}, "train": {"schedule": "constant", **train}})

    whole = trained(tmp_path / "whole", tables(steps=6, save_every=3))
    broken = trained(tmp_path / "broken", tables(steps=3, save_every=3))
    assert Run.load(broken).model.growth == Growth(0, 0.5)
    resumed(broken, steps=6)
    assert hashes(broken) == hashes(whole) and Run.load(broken).model.growth == Growth(1)


def test_samples_become_the_data_and_without_a_critic_they_do_not():
    generator = {"name": "stylegan-generator", "base": 64, "most": 16, "style": 8, "mapping": 2}
    nets = {"generator": generator, "critic": {"name": "progan-critic", "base": 64, "most": 16}}
    found = learned(lambda spec: StyleGan.make({"latent": 4, "smooth_weight": 3.0, **nets}, spec), side=4)
    assert found["trained"][0] < 0.25 < 0.5 < found["deaf"][0], found
    assert 0.1 < found["trained"][1] < 0.9, f"both kinds: {found}"
