"""WGAN-GP: the passport of the catalogue, the released networks' counts, the order of turns, and resuming."""

import copy
import json

import pytest
import torch
from safetensors import safe_open
from tiny import hashes, opened, resumed, smoke, trained, trainer
from torch import nn

from gencli import recipe
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Field, LatentVariable, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.metrics._base import FeatureSet
from gencli.metrics.wasserstein import Wasserstein
from gencli.models.gan.wgan_gp import WganGp
from gencli.samplers.prior import Prior
from gencli.training import across
from gencli.training import session as sessions

PLANE = Spec(Field("points", (2,)))
IMAGES = Spec(Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)))


def mlp(width=32, layers=2, activation="relu"):
    return {"name": "mlp", "width": width, "layers": layers, "activation": activation}


def of_points(critic=None, generator=None, seed=0, **settings):
    torch.manual_seed(seed)
    parts = {"generator": generator or mlp(), "critic": critic or mlp()}
    return WganGp.make({"latent": 4, **parts, **settings}, PLANE)


def of_images(norm="batch", critic="none", seed=0, spec=IMAGES):
    torch.manual_seed(seed)
    generator = {"name": "dcgan-generator", "width": 8, "upsamples": 2, "norm": norm}
    made = {"latent": 4, "generator": generator}
    return WganGp.make({**made, "critic": {"name": "dcgan-critic", "width": 8, "downsamples": 2, "norm": critic}}, spec)


def turn(phase="critic", n=8, key=0):
    return Turn(phase, 0, 10, Rng.batch("t", key, total=n))


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def count(module):
    return sum(p.numel() for p in module.parameters())


def between(x, made, share):
    return torch.lerp(x, made, share.reshape(-1, *[1] * (x.ndim - 1)))


class Linear(nn.Module):
    """f(x) = w·x + b."""

    def __init__(self, w):
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w, dtype=torch.float64)), nn.Parameter(torch.tensor(5.0).double())

    def forward(self, x):
        return x @ self.w[:, None] + self.b


class Bowl(nn.Module):
    """f(x) = a |x|² / 2, whose gradient is a x."""

    def __init__(self, a=1.0):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def forward(self, x):
        return self.a * x.square().sum(1, keepdim=True) / 2


# ------------------------------------------------------------------------------------------------------------- the passport


@pytest.mark.parametrize("w", [(0.6, 0.8), (3.0, 4.0), (0.3, -0.4), (0.0, 0.0)])
def test_a_linear_critics_penalty_is_its_slopes_distance_from_one_squared(w):
    model = of_points(penalty=7.0).double()
    model.critic = Linear(w)
    x, made = normal(8, 2), normal(8, 2, seed=1)
    losses = model.critic_loss(x, made, Rng.batch("p", total=8))
    size = torch.tensor(w).double().norm()
    torch.testing.assert_close(losses["penalty"], (size - 1).square())
    torch.testing.assert_close(losses["slope"], size)
    gain = (x - made).mean(0) @ torch.tensor(w).double()
    torch.testing.assert_close(losses["wasserstein"], gain)
    torch.testing.assert_close(losses["loss"], 7 * (size - 1).square() - gain)
    losses["loss"].backward()  # a slope of zero has no infinite derivative
    assert torch.isfinite(model.critic.w.grad).all()


def test_the_slope_is_each_items_own_on_the_way_from_its_datum_to_its_sample():
    model = of_points().double()
    model.critic = Bowl(2.0)
    x, made, share = normal(6, 2), normal(6, 2, seed=1), torch.linspace(0, 1, 6).double()
    slope = model.slope(between(x, made, share))
    way = torch.stack([(1 - s) * a + s * b for a, b, s in zip(x, made, share, strict=True)])
    torch.testing.assert_close(slope, 2 * way.norm(dim=1))
    wrong = {"at the data only": 2 * x.norm(dim=1), "over the batch": (2 * way).norm().expand(6)}
    for name, value in wrong.items():
        assert not torch.allclose(slope, value, rtol=0.05), name
    drawn = model.critic_loss(x, made, Rng.batch("p", total=6))["slope"]
    assert drawn != model.critic_loss(x, made, Rng.batch("q", total=6))["slope"], "the place is random"
    ends = torch.stack([x.norm(dim=1), made.norm(dim=1)])
    assert 0 < drawn < 2 * ends.amax(0).mean(), "a norm is convex: between the ends it is below the greater"


def estimate(penalty, mean, steps=150):
    """What a trained critic says of N(0, I) and N(mean, I), on fresh points."""
    model = of_points(critic=mlp(32), penalty=penalty)
    optimiser = torch.optim.Adam(model.critic.parameters(), 3e-3, betas=(0.5, 0.9))

    def pair(n, seed):
        points = normal(2, n, 2, seed=seed, dtype=torch.float32)
        return points[0] + torch.tensor(mean), points[1]

    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 3e-3 * (1 - step / steps)
        loss = model.critic_loss(*pair(256, step), Rng.batch(step, total=256))["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return float(model.critic_loss(*pair(20_000, 10_000), Rng.batch("end", total=20_000))["wasserstein"])


def test_a_trained_critic_estimates_how_far_apart_two_gaussians_are():
    assert estimate(10.0, (0.6, -0.8)) == pytest.approx(1.0, rel=0.1)
    assert estimate(10.0, (0.0, 0.0)) == pytest.approx(0.0, abs=0.05)
    assert estimate(0.0, (0.6, -0.8)) > 2, "without its penalty a critic has no scale"


def test_the_gradient_of_the_penalty_reaches_the_critics_weights():
    model = of_points(critic=mlp(8, activation="tanh")).double()
    x, made, share = normal(5, 2), normal(5, 2, seed=1), torch.linspace(0.1, 0.9, 5).double()

    def penalty():
        return (model.slope(between(x, made, share)) - 1).square().mean()

    penalty().backward()
    for name, p in model.critic.named_parameters():
        if name == "body.4.bias":
            assert not p.grad.any() if p.grad is not None else True, "a constant has no slope"
            continue
        way, eps = normal(*p.shape, seed=2), 1e-5
        with torch.no_grad():
            p.add_(way, alpha=eps)
            up = penalty()
            p.sub_(way, alpha=2 * eps)
            down = penalty()
            p.add_(way, alpha=eps)
        assert p.grad.abs().sum() > 0, name
        torch.testing.assert_close((p.grad * way).sum(), (up - down) / (2 * eps), rtol=1e-6, atol=1e-9)
    x.requires_grad_()
    penalty()
    assert x.grad is None, "it differentiates where it looks, and leaves the data alone"


def test_autocast_leaves_the_penalty_in_full_precision():
    model = of_points()
    x, made, share = (t.float() for t in (normal(8, 2), normal(8, 2, seed=1), torch.linspace(0, 1, 8)))
    plain = model.slope(between(x, made, share))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.slope(between(x, made, share)), plain)
        assert model.critic(x).dtype == torch.bfloat16 and model.score(x).dtype == torch.float32
        losses = model({"x": x}, turn())
    losses["loss"].backward()
    assert losses["loss"].dtype == torch.float32 and all(
        torch.isfinite(p.grad).all() for p in model.critic.parameters()
    )


# ---------------------------------------------------------------------------------------------------------------- networks


def test_the_cifar_recipe_has_the_released_parameter_counts():
    table = recipe.load("wgan-gp-cifar10")
    values = {key: value for key, value in table["model"].items() if key != "name"}
    with torch.device("meta"):
        model = WganGp.make(values, Spec(Field("image", (3, 32, 32), vocab=256, range=(-1.0, 1.0))))
        assert count(WganGp.make({}, model.spec)) == count(model), "these are the defaults"
    assert count(model.generator) == 5_179_907 and count(model.critic) == 4_114_689
    assert model.prior(2, Rng.rows([0, 1])).shape == (2, 128) and model.config.critic_turns == 5
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.critic.modules())
    train = table["train"]
    assert (train["lr"], train["betas"], train["batch_size"], train["ema"]) == (1e-4, [0.5, 0.9], 64, 0)
    assert train["steps"] == 5 * 200_000


def test_the_networks_start_as_the_released_ones():
    torch.manual_seed(0)
    model = WganGp.make({}, Spec(Field("image", (3, 32, 32), vocab=256, range=(-1.0, 1.0))))
    first, deconv = model.generator.body[0], model.generator.body[4]
    conv = model.critic.body[2]
    for layer, variance in (
        (first, 2 / (128 + 8192)),
        (deconv, 4 / (25 * 512 / 4 + 25 * 256)),
        (conv, 4 / (25 * 128 + 25 * 256 / 4)),
    ):
        assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.02)
        assert float(layer.weight.detach().abs().max()) <= (3 * variance) ** 0.5 and not layer.bias.any()


@pytest.mark.parametrize("value_range", [(-1.0, 1.0), (0.0, 1.0)])
def test_samples_fill_the_datas_range_and_stay_inside(value_range):
    spec = Spec(Field("image", (1, 8, 8), vocab=256, range=value_range))
    model = of_images("none", spec=spec)
    x = model.decode(model.prior(64, Rng.rows(range(64))) * 1000).detach()
    assert x.shape == (64, 1, 8, 8)
    assert (float(x.min()), float(x.max())) == pytest.approx(value_range, abs=1e-3)
    assert x.min() >= value_range[0] and x.max() <= value_range[1]


def test_only_batch_normalisation_couples_items_and_samples_never_do():
    assert [of_images(norm).couples for norm in ("batch", "layer", "none")] == [True, False, False]
    for norm in ("batch", "layer", "none"):
        model = of_images(norm, critic="layer")
        z = model.prior(4, Rng.rows(range(4)))
        moved = copy.deepcopy(model).decode(z)
        coupled = not torch.allclose(moved[:1], copy.deepcopy(model).decode(z[:2])[:1], atol=1e-5)
        assert coupled == model.couples
        model.eval()
        torch.testing.assert_close(model.decode(z)[:1], model.decode(z[:1]))
        x = normal(4, 1, 8, 8, dtype=torch.float32)
        torch.testing.assert_close(model.score(x)[:1], model.score(x[:1]))


def test_running_statistics_follow_every_batch_made_and_are_made_equal_over_processes(monkeypatch):
    model = of_images()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for phase, seen in (("critic", 1), ("generator", 2)):
        model({"x": torch.zeros(8, 1, 8, 8)}, turn(phase))
        assert {int(m.num_batches_tracked) for m in norms} == {seen}
    before = [m.running_mean.clone() for m in norms]
    across.average_statistics(model)
    assert all(torch.equal(m.running_mean, b) for m, b in zip(norms, before, strict=True))
    monkeypatch.setattr(across, "world", lambda: type("Two", (), {"size": 2}))
    monkeypatch.setattr(across, "all_reduce", lambda value: value.add_(3.0))  # the other process has threes
    across.average_statistics(model)
    for m, b in zip(norms, before, strict=True):
        torch.testing.assert_close(m.running_mean, (b + 3) / 2)


# ------------------------------------------------------------------------------------------------------------------- turns


def tables(norm="batch", **train):
    """The digits recipe in miniature, with batch normalisation, whose statistics a resumed run needs too."""
    over = {"model": {"generator": {"norm": norm}, "critic_turns": 5}, "train": {"schedule": "constant", **train}}
    return merge(smoke("wgan-gp"), over)


def test_the_generator_moves_in_the_first_and_every_fifth_step_after_it_and_the_critic_in_each():
    one = trainer(tables(steps=12))
    moved, terms = {"critic": [], "generator": []}, []
    for step in range(1, 13):
        before = {name: weights(getattr(one.model, name)) for name in moved}
        terms.append(set(one.take_step().losses))
        for name, steps in moved.items():
            if not torch.equal(before[name], weights(getattr(one.model, name))):
                steps.append(step)
    assert moved == {"critic": list(range(1, 13)), "generator": [1, 6, 11]}
    assert [i + 1 for i, keys in enumerate(terms) if "generator/loss" in keys] == [1, 6, 11]
    counted = {name: {int(s["step"]) for s in optimiser.state.values()} for name, optimiser in one.optimisers.items()}
    assert counted == {"critic": {12}, "generator": {3}}
    assert not [key for key in one.average.state if key.startswith("critic")]


def test_the_generator_follows_the_critic_and_the_critic_what_is_real():
    model = of_points().double()
    model.critic = Linear((3.0, 0.0))
    losses = model({"x": normal(8, 2)}, turn("generator"))
    made = model.decode(model.prior(8, turn("generator").rng).double())
    torch.testing.assert_close(losses["loss"], -(3 * made[:, 0] + 5).mean())
    model({"x": normal(8, 2)}, turn())["loss"].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    assert model.critic.w.grad is not None


def test_a_line_of_the_log_has_the_last_turn_of_every_phase_since_the_line_before(tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "LOGGED", 2)
    whole = trained(tmp_path, tables(steps=12))
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [6, 12] and all("generator/loss" in line for line in lines)


def test_the_critic_is_not_in_the_weights_file_and_comes_back_on_resuming(tmp_path):
    whole = trained(tmp_path / "whole", tables(steps=12, save_every=7))
    broken = trained(tmp_path / "broken", tables(steps=7, save_every=7))
    with safe_open(broken / "model.safetensors", framework="pt") as file:
        assert not [key for key in file.keys() if key.startswith("critic")]  # noqa: SIM118
    with safe_open(broken / "train" / "step-00000007" / "raw.safetensors", framework="pt") as file:
        assert [key for key in file.keys() if key.startswith("critic")]  # noqa: SIM118
    events = resumed(broken, steps=12)  # in the middle of five turns
    assert "resumed at step 7" in [event.text for event in events]
    assert hashes(broken) == hashes(whole)


# ----------------------------------------------------------------------------------------------------------------- samples


def test_samples_vary_are_their_seeds_own_and_a_walk_leads_to_them(tmp_path):
    run = Run.load(trained(tmp_path, tables()))
    assert isinstance(run.model, LatentVariable)
    many = run.sample(Rng.rows(range(32)))["x"].float()
    assert many.std(0).mean() > 1, "grey levels differ from seed to seed"
    assert torch.equal(run.sample(Rng.rows([7]))["x"].float()[0], many[7])
    shown = [x for _, x in run.frames(Rng.rows([7, 8]), sampler=Prior.make({}), every=True)]
    assert len(shown) == 24 and torch.equal(shown[-1].float(), many[7:9])


def test_labels_of_the_data_are_left_aside(tmp_path):
    made = merge(tables(), {"data": {"unconditional": False}})
    folder = trained(tmp_path, made)
    run = Run.load(folder)
    assert "label" in run.data_spec.cond and not run.model.spec.cond
    assert run.sample(Rng.rows([0]))["x"].shape == (1, 1, 8, 8)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(GencliError, match="continuous data, got codes of 16 values"):
        WganGp.make({}, Spec(Field("codes", (4, 4), vocab=16)))
    with pytest.raises(GencliError, match="works on images"):
        WganGp.make({}, PLANE)
    with pytest.raises(GencliError, match="image size 28×28 is not divisible by the network's stride 8"):
        WganGp.make({}, Spec(Field("image", (1, 28, 28), vocab=256, range=(-1.0, 1.0))))


@pytest.mark.slow
def test_the_toy_recipe_finds_the_eight_gaussians():
    table = recipe.load("wgan-gp-toy2d")
    one = trainer(table)
    untrained = one.run.sample(Rng.rows(range(2000)))["x"].float()
    for _ in one:
        pass
    run, real = one.run, torch.from_numpy(opened(table["data"]).split("test").x[:2000])
    with one.average.worn_by(run.model):
        made = run.sample(Rng.rows(range(2000)))["x"].float()
    gaussian = normal(2000, 2, dtype=torch.float32) @ torch.linalg.cholesky(real.T.cov()).T

    def apart(points):
        sets = [FeatureSet(rows.double().numpy(), "points") for rows in (real, points)]
        return Wasserstein.make({})(*sets).value

    assert apart(made) < 0.3 * apart(gaussian) and apart(untrained) > apart(gaussian)
    middle = made.norm(dim=1) < 0.5 * real.norm(dim=1).median()
    assert middle.float().mean() < 0.05, "hardly any lie between the Gaussians"
