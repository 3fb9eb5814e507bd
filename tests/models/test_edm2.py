"""EDM2: a loss that learns its own uncertainty, forced weight normalisation, official sizes."""

import copy
import math

import pytest
import torch
from diffused import MLP, POINTS, SPEC, Told, counted
from tiny import trained

from gencli import recipe
from gencli.bundle import read_tensors
from gencli.config import parse
from gencli.core import Field, Rng, Spec, Turn
from gencli.models.diffusion.edm import Edm
from gencli.models.diffusion.edm2 import Edm2
from gencli.nn.magnitude import MPLayer
from gencli.training.posthoc import snapshots
from gencli.training.settings import TrainConfig

NET = {"name": "edm2-unet", "width": 8, "mults": (1, 2), "blocks": 1, "attention": (2,)}
IMAGENET = Spec(Field("image", (3, 64, 64), vocab=256, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=1000)})


def made(cls=Edm2, **settings):
    """A model with random weights everywhere, dropping no labels."""
    torch.manual_seed(0)
    model = cls.make({"net": NET, "p_mean": -0.4, "p_std": 1.0, "label_dropout": 0.0, **settings}, SPEC)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


def batch(n=16):
    x = torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return {"x": x, "label": torch.arange(n) % 10}


def turn(n=16, key=0):
    return Turn("main", 0, 1, Rng.batch(key, total=n))


def pair():
    """EDM and EDM2 with the same network."""
    one, two = made(Edm), made()
    two.net.load_state_dict(one.net.state_dict())
    return one, two


def test_parameter_counts_are_the_official_ones():
    assert counted("edm2-imagenet64", IMAGENET)[0] == 280_209_381


def test_without_uncertainty_the_loss_is_edms():
    one, two = pair()
    with torch.no_grad():
        two.log_variance.linear.weight.zero_()
    torch.testing.assert_close(two(batch(), turn())["each"], one(batch(), turn())["each"])


def test_the_loss_is_the_papers():
    one, two = pair()
    sigma = two.draw_sigma(16, turn().rng.at("levels"))
    u = two.log_variance(sigma.log().float() / 4)
    assert u.shape == (16,) and float(u.detach().std()) > 0.1
    plain = one(batch(), turn())["each"]
    torch.testing.assert_close(two(batch(), turn())["each"], plain / u.exp() + u)
    s = sigma.reshape(-1, 1, 1, 1)
    noise = turn().rng.at("noise").normal((16, 1, 4, 4))
    x = batch()["x"]
    error = two.denoise((x + s * noise).double(), sigma, label=batch()["label"]) - x
    weight = (s**2 + 0.25) / (0.5 * s) ** 2
    torch.testing.assert_close((weight * error**2).mean((1, 2, 3)).float(), plain, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_the_log_variance_is_one_minus_the_share_of_the_error():
    _, model = pair()
    asked = []
    model.log_variance.register_forward_hook(lambda module, inputs, u: asked.append(u) or u.retain_grad())
    loss = model(batch(), turn())
    loss["loss"].backward()
    (u,) = asked
    torch.testing.assert_close(u.grad, (1 - (loss["each"] - u)).detach() / 16)


def test_the_log_variance_becomes_the_log_of_the_error_at_each_level():
    """F = 0 has error 1 at every level, F = 3 has error 10."""
    model = Edm2.make({"net": MLP, "label_dropout": 0.0, "p_mean": 0.0}, POINTS)

    def target(x, level, **cond):
        return x * 0 + 3.0 * (level[:, None] > 0)

    model.net = Told(target, torch.float32)
    optimiser = torch.optim.Adam(model.log_variance.parameters(), lr=0.03)
    x = Rng.batch("x", total=512).normal((512, 2)) * 0.5
    for step in range(300):
        optimiser.zero_grad()
        model({"x": x}, turn(512, key=step))["loss"].backward()
        optimiser.step()
        model.after_step(turn())
    low, high = model.log_variance(torch.tensor([-0.3, 0.3])).tolist()
    assert low == pytest.approx(0.0, abs=0.5) and high == pytest.approx(math.log(10.0), abs=0.5)


def test_weights_have_magnitude_one_at_the_start_and_after_every_step_and_outputs_do_not_change():
    torch.manual_seed(0)
    fresh = Edm2.make({"net": NET}, SPEC)
    layers = [m for m in fresh.modules() if isinstance(m, MPLayer)]
    assert len(layers) > 15 and any(m is fresh.log_variance.linear for m in layers)

    def off(model):
        return max(
            float((m.weight.detach().square().flatten(1).mean(1) - 1).abs().max())
            for m in model.modules()
            if isinstance(m, MPLayer)
        )

    assert off(fresh) < 1e-3
    model = made()
    assert off(model) > 0.05
    before, weights = model(batch(), turn())["each"], copy.deepcopy(model.state_dict())
    model.after_step(turn())
    assert off(model) < 1e-3
    torch.testing.assert_close(model(batch(), turn())["each"], before, rtol=1e-3, atol=1e-3)
    gains = [name for name in weights if name.endswith("gain")]
    assert gains and all(torch.equal(model.state_dict()[name], weights[name]) for name in gains)


def test_training_keeps_the_magnitudes_and_the_log_variance_stays_in_train(tmp_path):
    folder = trained(tmp_path, recipe.load("edm2", smoke=True))
    weights, raw = read_tensors(folder / "model.safetensors")[0], read_tensors(newest(folder))[0]
    assert float((raw["net.conv_in.weight"].square().flatten(1).mean(1) - 1).abs().max()) < 1e-3
    assert raw.keys() - weights.keys() == {
        f"log_variance.{n}" for n in ("waves.frequency", "waves.phase", "linear.weight")
    }
    assert [path.name for path in snapshots(folder)] == ["step-00000003.safetensors"]


def newest(folder):
    return max((folder / "train").glob("step-*")) / "raw.safetensors"


def test_the_laptop_recipe_is_the_papers_training_in_small():
    train = parse(TrainConfig, recipe.load("edm2")["train"])
    assert train.schedule == "rsqrt" and train.ema_profiles == (0.05, 0.1) and train.betas == (0.9, 0.99)
    paper = recipe.load("edm2-imagenet64")
    assert paper["train"]["steps"] * paper["train"]["batch_size"] == 1024 << 20
