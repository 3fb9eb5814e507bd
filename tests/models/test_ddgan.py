"""Denoising diffusion GANs: DDPM's posterior, T calls a sample, an ordinary GAN at T = 1, and laws no Gaussian step has."""

import math
from functools import cache

import pytest
import torch
from diffused import CIFAR
from torch import nn
from torch.nn.functional import softplus

from gencli import recipe
from gencli.config import choose
from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion.ddgan import Ddgan, Steps
from gencli.models.gan.gan import Gan
from gencli.nn.embed import LatentEmbedding
from gencli.samplers.prior import Prior

LINE = Spec(Field("points", (1,)))
PLANE = Spec(Field("points", (2,)))
LABEL = Field("label", (), vocab=3)
IMAGES = Spec(Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)))
NETS = {
    "generator": {"name": "denoising-mlp", "width": 16, "layers": 1},
    "critic": {"name": "mlp", "width": 16, "layers": 2, "activation": "relu"},
}


def made(spec=PLANE, **over):
    torch.manual_seed(0)
    model = Ddgan.make({"latent": 3, **NETS, **over}, spec)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return model.double()


def normal(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def turn(phase, n=8, key=0):
    return Turn(phase, 0, 10, Rng.batch("d", key, total=n))


# ---------------------------------------------------------------------------------------------------------------- the posterior


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_step_is_the_law_of_ddpm_for_a_given_end(count):
    """By Bayes' rule from the chain itself: precisions of q(x_{t−1} | x_0) and q(x_t | x_{t−1}) add."""
    model, low, high = made(timesteps=count), 0.1, 20.0
    u = [t / count for t in range(count + 1)]
    beta = [1 - math.exp(-low / count - (high - low) * (2 * t - 1) / (2 * count**2)) for t in range(1, count + 1)]
    kept = [math.exp(-low * v - (high - low) / 2 * v * v) for v in u]
    guess, noisy, noise = normal(5, 2), normal(5, 2, seed=1), normal(5, 2, seed=2)
    for t in range(1, count + 1):
        before, step = math.prod(1 - b for b in beta[: t - 1]), torch.full((5,), t - 1)
        assert before == pytest.approx(kept[t - 1], rel=1e-12), "the paper's β are the SDE's"
        found = model.back(guess, noisy, step, noise)
        if t == 1:
            torch.testing.assert_close(found, guess, rtol=0, atol=1e-12)
            continue
        precision = 1 / (1 - before) + (1 - beta[t - 1]) / beta[t - 1]
        mean = math.sqrt(before) / (1 - before) * guess + math.sqrt(1 - beta[t - 1]) / beta[t - 1] * noisy
        torch.testing.assert_close(found, mean / precision + noise / math.sqrt(precision), rtol=1e-10, atol=1e-12)


def test_pairs_of_the_data_have_the_law_that_the_posterior_inverts():
    """x_{t−1} rebuilt from x_0 and x_t has the variance and the covariance with x_t that pairs have."""
    model, n = made(LINE, timesteps=3), 200_000
    data = torch.full((n, 1), 0.7, dtype=torch.float64)
    x, told = model.shown({"x": data}, Rng.batch("pairs", total=n))
    noisy, step = told["noisy"], told["step"]
    again = model.back(data, noisy, step, normal(n, 1, seed=3))
    for t in range(3):
        pick = step == t
        pairs, built = (torch.cat([a[pick], noisy[pick]], 1).T for a in (x, again))
        torch.testing.assert_close(pairs.mean(1), built.mean(1), rtol=0, atol=0.02)
        torch.testing.assert_close(pairs.cov(), built.cov(), rtol=0.02, atol=0.01)
    assert step.bincount(minlength=3).min() > 0.32 * n


# ------------------------------------------------------------------------------------------------------------------- the game


@pytest.mark.parametrize("phase", ["critic", "generator"])
def test_losses_are_the_papers(phase):
    model, data, at = made(smooth_weight=0.3), normal(8, 2), turn(phase)
    found = model({"x": data}, at)
    x, told = model.shown({"x": data}, at.rng)
    fake = model.samples(x, at.rng, **told)
    rows = torch.arange(8)
    one_hot = model.critic.label(told["step"])  # the row that the first layer is told

    def says(one):
        first, *rest = model.critic.body
        h = first(torch.cat([one, told["noisy"]], 1)) + one_hot
        for layer in rest:
            h = layer(h)
        return h[rows, 0]

    if phase == "generator":
        torch.testing.assert_close(found["each"], softplus(-says(fake)))
        return
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(says(x).sum(), x)
    wanted = softplus(-says(x)) + softplus(says(fake)) + 0.3 / 2 * slope.square().sum(1)
    torch.testing.assert_close(found["each"], wanted)


def test_the_generator_is_told_the_step_and_its_latent_and_the_critic_what_x_came_from():
    model = made(Spec(PLANE.x, {"label": LABEL}), classes=True)
    x, noisy, z = normal(4, 2), normal(4, 2, seed=1), normal(4, 3, seed=2)
    at, label = torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long)

    def differ(a, b):
        return float((a - b).detach().abs().min()) > 1e-6

    guess = model.guess(noisy, at, z, label=label)
    assert differ(guess, model.guess(noisy, at + 1, z, label=label)), "the step"
    assert differ(guess, model.guess(noisy, at, -z, label=label)), "the latent"
    assert differ(guess, model.guess(noisy, at, z, label=label + 1)), "the class"
    torch.testing.assert_close(guess, model.guess(noisy, at, 9 * z, label=label), rtol=1e-6, atol=1e-6)
    said = model.score(x, noisy=noisy, step=at, label=label)
    assert differ(said, model.score(x, noisy=noisy + 0.1, step=at, label=label)), "x_t"
    assert differ(said, model.score(x, noisy=noisy, step=at + 1, label=label)), "the step"
    assert differ(said, model.score(x, noisy=noisy, step=at, label=label + 1)), "the class"
    assert model.critic.label.num_embeddings == 4 * 3 + 1
    assert any(isinstance(m, LatentEmbedding) for m in model.generator.modules())


def test_one_step_is_an_ordinary_gan():
    """x_1 is all but independent of the data, what is made of it is not changed, and the losses are those of `gan`."""
    model, n = made(timesteps=1, smooth="none"), 100_000
    data = normal(n, 2)
    _, told = model.shown({"x": data}, Rng.batch("one", total=n))
    joint = torch.cat([data, told["noisy"]], 1).T.corrcoef()
    assert float(Steps.of(1).before) == 1 and joint[:2, 2:].abs().max() < 0.02
    torch.testing.assert_close(told["noisy"].T.cov(), torch.eye(2, dtype=torch.float64), rtol=0, atol=0.02)

    class Same(nn.Module):
        """The networks of the other, at noise and a latent that were drawn there."""

        def __init__(self, told, z):
            super().__init__()
            self.told, self.z = told, z

        def forward(self, x, **cond):
            if x.shape[1] == 2:
                return model.critic(torch.cat([x, self.told["noisy"]], 1), label=self.told["step"])
            return model.generator(self.told["noisy"], self.told["step"].double(), latent=self.z)

    for phase in ("critic", "generator"):
        at = turn(phase)
        x, told = model.shown({"x": data[:8]}, at.rng)
        torch.testing.assert_close(x, data[:8], rtol=0, atol=0)
        plain = Gan.make({"latent": 3}, PLANE)
        plain.generator = plain.critic = Same(told, at.rng.at("latent").normal((8, 3)).double())
        found, wanted = model({"x": data[:8]}, at), plain({"x": data[:8]}, at)
        torch.testing.assert_close(found["each"], wanted["each"])


# ----------------------------------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_sample_is_as_many_calls_of_the_generator_as_there_are_steps(count):
    model, asked = made(IMAGES, timesteps=count), []
    model.generator.register_forward_pre_hook(lambda net, args, told: asked.append(args[1]), with_kwargs=True)
    *_, last = Prior.make().frames(model, IMAGES, 3, Rng.rows(range(3)), {})
    assert [level.tolist() for level in asked] == [[t] * 3 for t in range(count - 1, -1, -1)]
    assert last.x.shape == (3, 1, 8, 8) and last.x.abs().max() <= 1
    z = model.prior(3, Rng.rows(range(3)).at("prior")).double()
    stages = model.stages(z)
    assert len(stages) == count + 1
    torch.testing.assert_close(stages[-1], last.x.double(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(stages[0].flatten(1), z[:, :64])


def test_what_cannot_be_is_refused():
    with pytest.raises(GencliError, match="--augment diffaug would change x_"):
        made(IMAGES, augment="diffaug")
    with pytest.raises(GencliError, match="cannot take the condition 'latent'"):
        made(IMAGES, generator={"name": "dit", "width": 8, "heads": 1, "depth": 1, "patch": 2})


def test_the_papers_recipe_has_the_released_settings():
    table = recipe.load("ddgan-cifar10")
    with torch.device("meta"):
        model = choose("models", table["model"]).build(CIFAR)
    counts = [sum(p.numel() for p in net.parameters()) for net in (model.generator, model.critic)]
    assert counts == [40_325_123, 4_124_929]
    config, train = model.config, table["train"]
    assert (config.timesteps, config.latent, config.smooth, config.smooth_every) == (4, 100, "r1", 15)
    assert config.smooth_weight * config.smooth_every == pytest.approx(0.02, rel=0.01)
    assert (train["lr"], config.critic_lr, train["betas"], train["ema_decay"]) == (1.6e-4, 1.25e-4, [0.5, 0.9], 0.9999)
    assert train["steps"] == 1800 * 50_000 // train["batch_size"]


@pytest.mark.parametrize("net", [{"name": "unet", "groups": 2}, {"name": "song-unet"}])
def test_convolutional_generators_are_told_their_latent(net):
    net = {**net, "width": 8, "mults": (1, 2), "blocks": 1, "attention": ()}
    model = made(IMAGES, generator=net)
    z, noisy, step = normal(2, 3), normal(1, 1, 8, 8).expand(2, -1, -1, -1), torch.zeros(2, dtype=torch.long)
    one, other = model.guess(noisy, step, z)
    assert float((one - other).detach().abs().max()) > 1e-3


# ----------------------------------------------------------------------------------------------------------------- learning


MODES, SPREAD = torch.tensor([-1.0, 1.0]), 0.1


def two_modes(n, rng):
    return MODES[rng.at("which").integers((n, 1), 2)] + SPREAD * rng.at("spread").normal((n, 1))


@cache
@torch.enable_grad()
def learned(steps=300, rate=5e-3):
    torch.manual_seed(0)
    nets = {name: {**net, "width": 64} for name, net in NETS.items()}
    model = Ddgan.make({"timesteps": 2, "latent": 8, "smooth_weight": 0.2, **nets}, LINE)
    rates = {"critic": 2 * rate, "generator": rate}
    optimisers = {
        phase.name: torch.optim.Adam(phase.modules[0].parameters(), rates[phase.name], (0.0, 0.9))
        for phase in model.phases()
    }
    for step in range(steps):
        for name, optimiser in optimisers.items():
            optimiser.param_groups[0]["lr"] = rates[name] * (1 - step / steps)
            rng = Rng.batch(name, step, total=128)
            loss = model({"x": two_modes(128, rng.at("data"))}, Turn(name, step, steps, rng))["loss"]
            model.zero_grad()
            loss.backward()
            optimiser.step()
    return model.eval()


def near_modes(x):
    """The share of points within four deviations of a mode, and the share of these at the greater one."""
    near = (x.abs() - 1).abs() < 4 * SPREAD
    return float(near.float().mean()), float((x[near] > 0).float().mean())


def best_gaussian(noisy, root):
    """Mean and deviation of x_0 given x_t = √ᾱ x_0 + √(1 − ᾱ) n: the best that a Gaussian can do."""
    left = 1 - root**2
    modes = MODES.double()
    total = root**2 * SPREAD**2 + left
    share = (-(noisy - root * modes).square() / (2 * total)).softmax(1)
    means = (SPREAD**2 * root * noisy + left * modes) / total
    mean = (share * means).sum(1, keepdim=True)
    spread = SPREAD**2 * left / total + (share * (means - mean).square()).sum(1, keepdim=True)
    return mean, spread.sqrt()


@torch.no_grad()
def test_latents_make_the_two_ends_that_a_point_may_come_from_and_no_gaussian_does():
    model, n = learned(), 2000
    noisy, step, z = torch.zeros(n, 1), torch.zeros(n, dtype=torch.long), normal(n, 8).float()
    found = model.back(model.guess(noisy, step, z), noisy, step, torch.zeros(n, 1))
    assert float(found.std()) > 0.5, "one x_1, many x_0"
    near, right = near_modes(found)
    assert near > 0.8 and 0.25 < right < 0.75
    mean, spread = best_gaussian(noisy.double(), model.steps.before[1].sqrt())
    assert near_modes(mean + spread * normal(n, 1, seed=1))[0] < 0.5


@torch.no_grad()
def test_two_steps_find_both_modes_where_two_gaussian_steps_fall_between():
    model, n = learned(), 2000
    near, right = near_modes(model.decode(model.prior(n, Rng.rows(range(n)))))
    assert near > 0.8 and 0.35 < right < 0.65
    noisy = normal(n, 1)
    for t in (2, 1):
        root = (model.steps.before * model.steps.alpha)[t - 1].sqrt()
        mean, spread = best_gaussian(noisy, root)
        through = model.steps.guess[t - 1]  # of the x_0's deviation
        wide = (model.steps.variance[t - 1] + (through * spread).square()).sqrt()
        noisy = through * mean + model.steps.noisy[t - 1] * noisy + wide * normal(n, 1, seed=t)
    assert near_modes(noisy)[0] < 0.7
