"""StyleGAN2-ADA: released counts, penalties by differences, phases, the pace of augmentation, truncation, resuming."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from tiny import hashes, resumed, shaken, smoke, trained, trainer
from torch.nn.functional import softplus
from two_kinds import learned, turn

from gencli import recipe
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.models.gan._pace import EVERY, Pace
from gencli.models.gan.stylegan2_ada import Stylegan2Ada
from gencli.samplers.prior import Prior

X = Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0))
LABELLED = Spec(X, {"label": Field("label", (), vocab=3)})
NETS = {
    "generator": {"name": "stylegan2-generator", "base": 32, "most": 6, "style": 5, "mapping": 2},
    "critic": {"name": "stylegan2-critic", "base": 32, "most": 6},
}


def made(spec=None, seed=0, **settings):
    torch.manual_seed(seed)
    model = Stylegan2Ada.make({"latent": 4, **NETS, **settings}, spec or Spec(X))
    shaken(model)
    return model


def images(n=8, seed=0, dtype=torch.float64):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


def slope_along(loss, weight, way, eps=1e-5):
    """A central difference of `loss()` when `weight` moves along `way`."""
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            weight.add_(way, alpha=sign * eps)
        ends.append(float(loss().detach()))
        with torch.no_grad():
            weight.sub_(way, alpha=sign * eps)
    return (ends[0] - ends[1]) / (2 * eps)


# --------------------------------------------------------------------------------------------------------------------- counts


def counts(name, side, **over):
    table = merge(recipe.load(name)["model"], over)
    cond = {"label": Field("label", (), vocab=10)} if over.get("classes") else {}
    spec = Spec(Field("image", (3, side, side), vocab=256, range=(-1.0, 1.0)), cond)
    with torch.device("meta"):
        model = Stylegan2Ada.make({key: value for key, value in table.items() if key != "name"}, spec)
    return [sum(p.numel() for p in net.parameters()) for net in (model.generator, model.critic)], model


def test_recipes_have_the_released_parameter_counts():
    assert counts("stylegan2-ada-cifar10", 32)[0] == [19_947_539, 20_720_641]
    assert counts("stylegan2-ada-cifar10", 32, classes=True)[0] == [20_215_315, 23_089_664]
    (paper, model), wide = counts("stylegan2-ada-256", 256), {"generator": {"base": 32_768}, "critic": {"base": 32_768}}
    assert paper == [24_767_458, 24_001_089] and model.generator.layers == 14
    auto = {"generator": {"mapping": 2}}
    assert counts("stylegan2-ada-256", 256, **auto)[0] == [23_191_522, 24_001_089]
    assert counts("stylegan2-ada-256", 512, **wide)[0] == [30_276_583, 28_982_849]
    (most, model) = counts("stylegan2-ada-256", 1024, **wide)
    assert most == [30_370_060, 29_012_513] and model.generator.layers == 18


def test_recipes_have_the_released_settings():
    for name, gamma, images_seen, half in (("cifar10", 0.01, 100e6, 500_000), ("256", 1.0, 25e6, 20_000)):
        table = recipe.load(f"stylegan2-ada-{name}")
        model, train = table["model"], table["train"]
        assert model["smooth_weight"] == gamma and train["steps"] * 64 == images_seen
        assert train["ema_decay"] == pytest.approx(0.5 ** (64 / half), abs=1e-6)
        assert train["lr"] == pytest.approx(0.0025 * 4 / 5) and model["critic_lr"] == pytest.approx(
            0.0025 * 16 / 17, rel=1e-3
        )
        assert train["betas"] == [0.0, pytest.approx(0.99 ** (4 / 5), abs=1e-4)]


def test_images_halve_to_a_grid_of_four_to_seven_or_are_refused():
    for side, levels in ((28, 3), (16, 3), (24, 3), (32, 4)):
        spec = Spec(Field("image", (1, side, side), vocab=256, range=(-1.0, 1.0)))
        assert len(made(spec).generator.grids) == levels
    with pytest.raises(GencliError, match="cannot halve an image of 18×18 to a grid of 4 to 7"):
        made(Spec(Field("image", (1, 18, 18), vocab=256, range=(-1.0, 1.0))))
    with pytest.raises(GencliError, match="works on images"):
        made(Spec(Field("points", (2,))), augment="none")
    with pytest.raises(GencliError, match="--augment bgc changes images, the data are points"):
        made(Spec(Field("points", (2,))))


# ------------------------------------------------------------------------------------------------------------------ penalties


def test_r1_looks_through_the_augmentation_and_its_gradient_is_a_difference():
    model, x = made(augment_p=0.8, smooth_weight=3.0, smooth_every=4).double(), images()
    rng = turn("smooth").rng.at("smooth")
    losses = model({"x": x}, turn("smooth"))
    at = x.clone().requires_grad_()
    look = model.seen(at, rng.at("seen"))
    assert not torch.allclose(look, x, atol=0.1)
    (slope,) = torch.autograd.grad(model.score(look).sum(), at)
    size = slope.square().sum((1, 2, 3)) / 2
    torch.testing.assert_close(losses["r1"], size.mean())
    torch.testing.assert_close(losses["loss"].detach(), 4 * 3.0 * size.mean())
    for weight in (model.critic.first.weight, model.critic.levels[0].halving.weight, model.critic.dense.weight):
        (grad,) = torch.autograd.grad(model({"x": x}, turn("smooth"))["loss"], weight)
        way = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        found = slope_along(lambda: model({"x": x}, turn("smooth"))["loss"], weight, way)
        assert float((grad * way).sum()) == pytest.approx(found, rel=1e-5)


def test_the_path_length_is_that_of_a_step_in_the_style_and_its_gradient_is_a_difference():
    model, x = made().double(), images()
    model.path_mean.fill_(0.3)
    styles = {key: value[:4].detach() for key, value in model.mixed(x, turn("path").rng).items()}
    y = turn("path").rng.at("direction").normal(x.shape).to(x)[:4]
    found = model.lengths(dict(styles), y)
    assert model.lengths({**styles, "w": styles["w"].clone()}, y).shape == (4,)
    w, layers = styles["w"], styles["w"].shape[1]
    squares = torch.zeros(4, layers, dtype=torch.float64)
    for layer in range(layers):  # the gradient, number by number
        for i in range(w.shape[2]):
            step = torch.zeros_like(w)
            step[:, layer, i] = 1e-6
            with torch.no_grad():
                apart = model.drawn(w + step, styles["noise"]) - model.drawn(w - step, styles["noise"])
            squares[:, layer] += ((apart * y / 8).sum((1, 2, 3)) / 2e-6) ** 2
    torch.testing.assert_close(found.detach(), squares.mean(1).sqrt(), rtol=1e-6, atol=1e-8)
    losses = model({"x": x}, turn("path"))
    torch.testing.assert_close(losses["loss"].detach(), 4 * 2.0 * (found.detach() - 0.3).square().mean())
    weight = model.generator.levels[1].convs[0].conv.weight
    (grad,) = torch.autograd.grad(losses["loss"], weight)
    way = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float((grad * way).sum()) == pytest.approx(
        slope_along(lambda: model({"x": x}, turn("path"))["loss"], weight, way), rel=1e-5
    )


def test_the_mean_length_follows_the_lengths_after_each_of_its_turns():
    model, x = made(), images(dtype=torch.float32)
    shown = model({"x": x}, turn("path"))
    model.after_step(turn("path"))
    torch.testing.assert_close(model.path_mean, 0.01 * shown["length"])


def test_the_two_losses_are_softplus_of_what_the_critic_says_of_augmented_images():
    model, x = made(augment_p=0.5).double(), images()
    losses, rng = model({"x": x}, turn()), turn().rng
    shown = model.seen(model.samples(x, rng), rng.at("seen", "samples"))
    real = model.score(model.seen(x, rng.at("seen", "data")))
    torch.testing.assert_close(losses["loss"], (softplus(-real) + softplus(model.score(shown))).mean())
    torch.testing.assert_close(losses["sure"], real.sign().mean())
    torch.testing.assert_close(model({"x": x}, turn("generator"))["loss"], softplus(-model.score(shown)).mean())


# --------------------------------------------------------------------------------------------------------------------- phases


def test_each_phase_trains_its_own_network_and_leaves_no_gradient_on_the_other():
    model, x = made(), images(dtype=torch.float32)
    phases = {phase.name: phase for phase in model.phases()}
    assert {name: (phase.every, phase.shares) for name, phase in phases.items()} == {
        "critic": (1, None),
        "smooth": (16, "critic"),
        "generator": (1, None),
        "path": (4, "generator"),
    }
    for name, phase in phases.items():
        model.zero_grad()
        (mine,) = phase.modules
        other = model.generator if mine is model.critic else model.critic
        for p in model.parameters():
            p.requires_grad_(any(p is q for q in mine.parameters()))
        model({"x": x}, turn(name))["loss"].backward()
        assert all(p.grad is not None for p in mine.parameters()), name
        assert all(p.grad is None for p in other.parameters()), name
    model.requires_grad_(True).zero_grad()
    model({"x": x}, turn("critic"))["loss"].backward()
    assert all(p.grad is None for p in model.generator.parameters()), "samples are made without a graph"


def test_a_phase_that_shares_an_optimiser_moves_as_the_other():
    one = trainer(smoke("stylegan2-ada"))
    assert set(one.optimisers) == {"critic", "generator"}
    for _ in range(5):
        one.take_step()
    counted = {name: {int(s["step"]) for s in each.state.values()} for name, each in one.optimisers.items()}
    assert counted == {"critic": {5 + 3}, "generator": {5 + 3}}, "with every second turn's penalty"


def test_every_phase_works_in_bf16():
    model, x = made().float(), images().float()
    model.pace.p.fill_(0.5)
    for phase in model.phases():
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model({"x": x}, turn(phase.name))["loss"]
        loss.backward()
        assert loss.dtype == torch.float32
        assert all(torch.isfinite(p.grad).all() for p in phase.modules[0].parameters()), phase.name


# ---------------------------------------------------------------------------------------------------------------- augmentation


@pytest.mark.parametrize(("share", "way"), [(0.9, 1), (0.81, 1), (0.79, -1), (0.1, -1)])
def test_p_rises_exactly_when_the_discriminator_is_surer_than_the_target(share, way):
    pace = Pace(0.5)
    for _ in range(EVERY):
        assert float(pace.p) == 0.5, "it waits for four turns"
        pace.see(torch.tensor(share), 16)
        pace.see(torch.tensor(share), 48)  # another micro-batch of that turn
        pace.settle(target=0.6, span=10_000)
    assert float(pace.p) == pytest.approx(0.5 + way * EVERY * 64 / 10_000)
    assert float(pace.signs) == float(pace.items) == float(pace.turns) == 0


def test_p_ends_at_its_bounds():
    for p, share in ((0.999, 1.0), (0.001, 0.0)):
        pace = Pace(p)
        for _ in range(EVERY):
            pace.see(torch.tensor(share), 64)
            pace.settle(target=0.6, span=1000)
        assert float(pace.p) == round(p)


def test_p_moves_in_training_stays_where_told_and_only_the_critics_turns_count():
    model, x = made(pace=1000), images(dtype=torch.float32)
    for step in range(EVERY):
        for phase in ("critic", "generator"):
            model({"x": x}, turn(phase, key=step))
            model.after_step(turn(phase, key=step))
    sure = float(model({"x": x}, turn())["sure"])
    assert float(model.pace.p) == (pytest.approx(0.032) if sure > 0.6 else 0)
    fixed = made(augment_p=0.25, pace=0)
    for step in range(EVERY):
        fixed({"x": x}, turn(key=step))
        fixed.after_step(turn(key=step))
    assert float(fixed.augment_p) == 0.25
    fixed.eval()
    fixed({"x": x}, turn())
    assert fixed.pace._pending is not None and float(fixed.pace.items) == 0


def test_at_p_zero_the_discriminator_sees_the_images_themselves():
    model, x = made(augment_p=0.0), images(dtype=torch.float32)
    assert torch.equal(model.seen(x, turn().rng), x)
    plain = made(augment="none")
    for phase in ("critic", "smooth", "generator"):
        torch.testing.assert_close(
            model({"x": x}, turn(phase))["loss"], plain({"x": x}, turn(phase))["loss"], rtol=0, atol=0
        )


def tables(**train):
    over = {"model": {"pace": 500, "target": -0.9}, "train": {"schedule": "constant", **train}}
    return merge(smoke("stylegan2-ada"), over)


def test_a_resumed_run_has_the_same_p_mean_length_and_weights(tmp_path):
    whole = trained(tmp_path / "whole", tables(steps=5, save_every=3))
    broken = trained(tmp_path / "broken", tables(steps=3, save_every=3))
    half = load_file(broken / "train" / "step-00000003" / "raw.safetensors")
    assert float(half["pace.turns"]) == 3 and float(half["pace.items"]) == 24 and float(half["pace.p"]) == 0
    assert "resumed at step 3" in [event.text for event in resumed(broken, steps=5)]
    assert hashes(broken) == hashes(whole)
    state = load_file(broken / "train" / "step-00000005" / "raw.safetensors")
    assert float(state["pace.p"]) == pytest.approx(32 / 500), "in the fourth turn, of all four"
    assert float(state["path_mean"]) > 0 and float(state["pace.turns"]) == 1
    assert not [key for key in load_file(broken / "model.safetensors") if not key.startswith("generator.")]


# ----------------------------------------------------------------------------------------------------------- styles, truncation


def test_mixing_changes_the_later_layers_alone_and_not_at_all_with_one_style():
    model, x = made(mixing=1.0).double(), images(64)
    rng = turn(n=64).rng
    mixed, one = model.mixed(x, rng), model.styles(model.prior(64, rng).to(x))
    changed = (mixed["w"] != one["w"]).any(2)
    first = changed.float().argmax(1)
    assert changed.any(1).all() and not changed[:, 0].any() and set(first.tolist()) == set(range(1, 4))
    assert all(changed[i, first[i] :].all() for i in range(64))
    assert torch.equal(made(mixing=0.0).double().mixed(x, rng)["w"], one["w"])
    halves = sum(not row.any() for row in (made(mixing=0.5).double().mixed(x, rng)["w"] != one["w"]).any(2))
    assert 18 < halves < 46
    seen = []
    handles = [
        level.register_forward_hook(lambda *args: seen.append(args[2][0].detach())) for level in model.generator.levels
    ]
    at = int((first >= 1).nonzero()[0])
    for w in (one["w"], mixed["w"]):
        model.drawn(w[at : at + 1], mixed["noise"][at : at + 1])
    for handle in handles:
        handle.remove()
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[1], seen[3]), "layers before the change stay"


def test_truncation_moves_styles_to_their_mean():
    model = made().double().eval()
    with torch.no_grad():
        z = model.prior(6, Rng.rows(range(6))).double()
        plain, noise = model.decode(z), z[:, 4:]
        torch.testing.assert_close(model.decode(model.truncate(z, 1.0)), plain, rtol=0, atol=1e-12)
        still = model.decode({**model.truncate(z, 0.0), "noise": noise[:1].expand(6, -1)})
        torch.testing.assert_close(still, still[:1].expand(6, -1, -1, -1), rtol=0, atol=1e-12)
        mean = model.generator.style(Rng.batch(1, total=50_000).normal((50_000, 4)).double()).mean(0)
        torch.testing.assert_close(
            model.truncate(z, 0.0)["w"][0, 0], mean, rtol=0, atol=0.05 * float(mean.abs().max()) + 0.02
        )
        spread = [float(model.truncate(z, psi)["w"].std(0).mean()) for psi in (1.0, 0.7, 0.3)]
    assert spread[1] / spread[0] == pytest.approx(0.7) and spread[2] / spread[0] == pytest.approx(0.3)
    run = Run(model.float(), [], model.spec, model.spec, {})
    for psi in (None, 1.0):
        shown = run.sample(Rng.rows([3, 5]), sampler=Prior.make({"truncation": psi}))["x"]
        torch.testing.assert_close(shown, run.sample(Rng.rows([3, 5]))["x"], rtol=0, atol=1e-5)
    near, far = (
        run.sample(Rng.rows(range(32)), sampler=Prior.make({"truncation": psi}))["x"].std(0).mean() for psi in (0.2, 1)
    )
    assert near < far
    walk = list(run.frames(Rng.rows([3]), sampler=Prior.make({"truncation": 0.5, "path": "walk"}), every=True))
    end = run.sample(Rng.rows([3]), sampler=Prior.make({"truncation": 0.5}))["x"]
    assert torch.equal(walk[-1][1], end)


def test_classes_have_styles_and_means_of_their_own():
    model = made(LABELLED, classes=True).double().eval()
    label, z = torch.tensor([0, 1, 2, 1]), torch.zeros(4, 4 + sum(model.generator.spots)).double()
    with torch.no_grad():
        x = model.decode(z, label=label)
        assert torch.equal(x[1], x[3]) and not torch.allclose(x[0], x[1])
        score = model.score(x[:1].expand(4, -1, -1, -1), label=label)
        assert len(score.unique()) == 3
        mean = model.truncate(z, 0.0, label=label)["w"][:, 0]
        assert torch.equal(mean[1], mean[3]) and not torch.allclose(mean[0], mean[1])
    for phase in model.phases():
        model.zero_grad()
        batch = {"x": images(4), "label": label}
        model(batch, turn(phase.name, n=4))["loss"].backward()
        assert all(p.grad is not None for module in phase.modules for p in module.parameters()), phase.name


def test_a_sample_is_its_seeds_own_noise_and_all():
    model = made().eval()
    model.generator.levels[1].strength.data.fill_(0.5)
    with torch.no_grad():
        many = model.decode(model.prior(5, Rng.rows(range(5))))
        torch.testing.assert_close(model.decode(model.prior(1, Rng.rows([3])))[0], many[3], rtol=1e-5, atol=1e-5)
        z = model.prior(1, Rng.rows([3]))
        other = copy.deepcopy(z)
        other[:, 4:] += 1
        assert not torch.allclose(model.decode(z), model.decode(other), atol=1e-3), "noise is part of the latent"
        for level in model.generator.levels:
            level.strength.data.zero_()
        assert torch.equal(model.decode(z), model.decode(other)), "and of no strength says nothing"


# ---------------------------------------------------------------------------------------------------------------- convergence


def test_samples_become_the_data_and_without_a_critic_they_do_not():
    nets = {kind: {"name": f"stylegan2-{kind}", "base": 64, "most": 16} for kind in ("generator", "critic")}
    settings = {"smooth_weight": 3.0, "smooth_every": 1, "augment": "none", **merge(NETS, nets)}
    found = learned(lambda spec: made(spec, **settings), side=4)
    assert found["trained"][0] < 0.2 < 0.5 < found["deaf"][0], found
    assert 0.1 < found["trained"][1] < 0.9, "both kinds"
