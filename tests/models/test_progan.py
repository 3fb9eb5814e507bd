"""ProGAN: released counts, growth that is continuous and kept, the loss with its drift, phases, resuming."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import hashes, resumed, shaken, smoke, trained
from torch.nn import functional as F
from two_kinds import learned, turn

from gencli import recipe
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Field, Rng, Spec
from gencli.models.gan.progan import ProGan
from gencli.networks._growing import Growth, at_grid, in_squares, seen_at
from gencli.nn.equalised import EqualConv2d, EqualLinear

X = Field("image", (1, 16, 16), vocab=256, range=(-1.0, 1.0))
LABELLED = Spec(X, {"label": Field("label", (), vocab=3)})
NETS = {
    "generator": {"name": "progan-generator", "base": 32, "most": 6},
    "critic": {"name": "progan-critic", "base": 32, "most": 6},
}


def made(spec=None, seed=0, **settings):
    torch.manual_seed(seed)
    model = ProGan.make({"latent": 4, "stay": 100, "fade": 50, **NETS, **settings}, spec or Spec(X))
    shaken(model)
    return model.double()


def images(n=8, seed=0):
    return torch.rand(n, 1, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


# --------------------------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(
    ("name", "side", "counts"),
    [
        ("progan-cifar10", 32, [20_719_628, 20_726_785]),
        ("progan-1024", 256, [23_044_309, 23_052_353]),
        ("progan-1024", 1024, [23_079_115, 23_087_249]),
    ],
)
def test_recipes_have_the_released_parameter_counts_and_settings(name, side, counts):
    table = recipe.load(name)
    with torch.device("meta"):
        spec = Spec(Field("image", (3, side, side), vocab=256, range=(-1.0, 1.0)))
        model = ProGan.make({key: value for key, value in table["model"].items() if key != "name"}, spec)
        assert ProGan.make({}, spec).config == model.config, "these are the defaults"
    assert [sum(p.numel() for p in net.parameters()) for net in (model.generator, model.critic)] == counts
    train, config = table["train"], model.config
    assert (train["lr"], train["betas"], train["ema_decay"]) == (1e-3, [0.0, 0.99], 0.999)
    assert train["steps"] * train["batch_size"] == 15_000_000
    assert (config.penalty, config.drift, config.critic_turns, config.critic.config.group) == (10.0, 0.001, 1, 4)


def test_weights_start_normal_and_are_used_over_the_root_of_half_their_inputs():
    torch.manual_seed(0)
    model = ProGan.make({"latent": 64, "generator": {"name": "progan-generator", "base": 1024, "most": 64}}, Spec(X))
    layers = [m for m in model.modules() if isinstance(m, (EqualConv2d, EqualLinear)) and m.weight.numel() > 10_000]
    assert len(layers) > 6
    for layer in layers:
        assert float(layer.weight.detach().std()) == pytest.approx(1, abs=0.02)
        gain = 2**0.5 / 4 if layer is model.generator.dense else 2**0.5
        assert layer.scale == pytest.approx(gain / layer.weight[0].numel() ** 0.5)


# --------------------------------------------------------------------------------------------------------------------- growth


def test_growth_is_a_function_of_the_images_seen():
    model = made()
    known = {0: (0, None), 99: (0, None), 100: (0, 0.0), 125: (0, 0.5), 149: (0, 0.98), 150: (1, None), 250: (1, 0.0)}
    for images_seen, growth in {**known, 299: (1, 0.98), 300: (2, None), 10**9: (2, None)}.items():
        model.seen_images.fill_(images_seen)
        assert model.growth == Growth(*growth)
    assert made(first=1).growth.level == 1 and made(first=7).growth.level == 2
    model.seen_images.fill_(40)
    for phase in ("generator", "critic"):
        model.after_step(turn(phase))
    assert int(model.seen_images) == 48, "the critic's turns show images"


@pytest.mark.parametrize("level", [0, 1])
def test_fading_in_begins_with_the_smaller_network_and_ends_with_the_larger(level):
    model, x = made(), images()
    z = model.prior(8, Rng.rows(range(8))).double()
    with torch.no_grad():
        for net, args in ((model.generator, (z,)), (model.critic, (x,))):
            old, new = net(*args, growth=Growth(level)), net(*args, growth=Growth(level + 1))
            torch.testing.assert_close(net(*args, growth=Growth(level, 0.0)), old, rtol=0, atol=1e-12)
            torch.testing.assert_close(net(*args, growth=Growth(level, 1.0)), new, rtol=0, atol=1e-12)
            assert not torch.allclose(old, new, atol=0.01)
            near = net(*args, growth=Growth(level, 0.01))
            assert 0 < float((near - old).abs().max()) < 0.05 * float((new - old).abs().max()) + 0.05
    half = model.generator(z, growth=Growth(level, 0.5))
    ends = [model.generator(z, growth=Growth(level + i)) for i in (0, 1)]
    torch.testing.assert_close(half, (ends[0] + ends[1]) / 2)


def test_pictures_of_a_level_are_squares_and_data_are_shown_alike():
    model, x = made(), images()
    z = model.prior(8, Rng.rows(range(8))).double()
    small = model.decode(z)
    assert small.shape == x.shape
    torch.testing.assert_close(in_squares(small[..., ::4, ::4], (16, 16)), small, rtol=0, atol=0)
    torch.testing.assert_close(at_grid(small, (4, 4)), small[..., ::4, ::4])
    assert torch.equal(seen_at(x, Growth(2), model.generator.grids), x)
    coarse = F.interpolate(F.avg_pool2d(x, 4), scale_factor=4, mode="nearest")
    torch.testing.assert_close(seen_at(x, Growth(0), model.generator.grids), coarse)
    finer = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="nearest")
    torch.testing.assert_close(seen_at(x, Growth(0, 0.3), model.generator.grids), 0.7 * coarse + 0.3 * finer)
    torch.testing.assert_close(model.score(x), model.score(coarse)), "a critic at 4×4 sees no more"
    losses = [model({"x": seen}, turn())["loss"] for seen in (x, coarse)]
    torch.testing.assert_close(*losses)


def test_the_loss_is_that_of_wgan_gp_with_a_drift():
    model, x = made(drift=0.5), images()
    model.seen_images.fill_(10**6)
    losses, rng = model({"x": x}, turn()), turn().rng
    sample = model.samples(x, rng)
    share = rng.at("between").uniform((8,)).double()
    slope = model.slope(torch.lerp(x, sample, share[:, None, None, None]))
    real, fake = model.score(x), model.score(sample)
    each = fake - real + 10 * (slope - 1).square() + 0.5 * real.square()
    torch.testing.assert_close(losses["loss"], each.mean())
    assert made(drift=0.0)({"x": x}, turn())["loss"] != made(drift=0.5)({"x": x}, turn())["loss"]


@pytest.mark.parametrize("seen", [0, 125, 10**6])
def test_each_phase_trains_its_own_network_as_far_as_it_has_grown(seen):
    model, x = made(), images()
    model.seen_images.fill_(seen)
    for phase, other in (("critic", "generator"), ("generator", "critic")):
        model.zero_grad()
        for name in ("critic", "generator"):
            getattr(model, name).requires_grad_(name == phase)
        model({"x": x}, turn(phase))["loss"].backward()
        net = getattr(model, phase)
        assert all(p.grad is None for p in getattr(model, other).parameters())
        worked = [all(p.grad is not None for p in level.parameters()) for level in net.levels]
        assert worked == [i < model.growth.top for i in range(2)]


def test_classes_are_told_to_both():
    model = made(LABELLED, classes=True)
    label = torch.tensor([0, 1, 2])
    with torch.no_grad():
        x = model.decode(torch.ones(3, 4).double(), label=label)
        assert len(x[:, 0, 0, 0].unique()) == 3
        assert len(model.score(x[:1].expand(3, -1, -1, -1), label=label).unique()) == 3
    model({"x": images(3), "label": label}, turn(n=3))["loss"].backward()
    assert model.critic.last.weight.grad.abs().sum(1).min() > 0


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


# ------------------------------------------------------------------------------------------------------------------ the whole


def tables(**train):
    over = {"model": {"stay": 16, "fade": 32}, "train": {"schedule": "constant", **train}}
    return merge(smoke("progan"), over)


def test_a_resumed_run_grows_on_from_where_it_was(tmp_path):
    whole = trained(tmp_path / "whole", tables(steps=7, save_every=4))
    broken = trained(tmp_path / "broken", tables(steps=4, save_every=4))
    halfway = Run.load(broken).model
    assert int(halfway.seen_images) == 32 and halfway.growth == Growth(0, 0.5), "a run half-way samples as it is"
    assert "resumed at step 4" in [event.text for event in resumed(broken, steps=7)]
    assert hashes(broken) == hashes(whole)
    state = load_file(broken / "model.safetensors")
    assert int(state["seen_images"]) == 56 and Run.load(broken).model.growth == Growth(1)
    assert json.loads((broken / "config.json").read_text())["step"] == 7


def test_samples_become_the_data_while_the_network_grows_and_without_a_critic_they_do_not():
    wide = {kind: {"name": f"progan-{kind}", "base": 64, "most": 16} for kind in ("generator", "critic")}
    settings, grown = {"latent": 4, "stay": 600, "fade": 600, **wide}, []

    def step(model):
        model.after_step(turn(n=16))
        grown.append(model.growth)

    found = learned(lambda spec: ProGan.make(settings, spec), side=8, after=step)
    assert grown[119] == grown[-1] == Growth(1), "in either training"
    assert found["trained"][0] < 0.25 < 0.5 < found["deaf"][0], found
    assert 0.1 < found["trained"][1] < 0.9, f"both kinds: {found}"
