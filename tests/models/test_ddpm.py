"""DDPM: the chain, its levels, and its variational bound."""

import math
import tomllib
from importlib import resources

import pytest
import torch
from torch import nn

from gencli.config import choose, parse
from gencli.core import Denoiser, Field, Likelihood, Rng, Spec
from gencli.errors import GencliError
from gencli.models.diffusion._chain import levels_of, reverse_variances
from gencli.models.diffusion.ddpm import Ddpm
from gencli.nn.discretised import discretised_gaussian
from gencli.samplers.ancestral import Ancestral

NET = {"name": "unet", "width": 4, "mults": (1,), "blocks": 1, "attention": ()}
GRID = Spec(Field("image", (1, 2, 2), vocab=256, range=(-1.0, 1.0)))
LINE = Spec(Field("points", (1, 1, 1)))  # one unbounded number


class Gaussian(nn.Module):
    """The exact noise prediction for data N(mean, std²)."""

    def __init__(self, model, mean, std):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.levels, self.mean, self.std = model.levels, mean, std

    def forward(self, x, level, **cond):
        sigma = self.levels.flip(0)[level.long()].reshape(-1, 1, 1, 1)
        x = x * (1 + sigma**2).sqrt()
        return (x - self.mean) * sigma / (self.std**2 + sigma**2)


class Nothing(nn.Module):
    """Predicts zeros."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x, level, **cond):
        return torch.zeros_like(x)


def exact(mean, std, spec=LINE, **settings):
    model = Ddpm.make({"net": NET, **settings}, spec)
    model.net = Gaussian(model, mean, std)
    return model


def test_it_offers_what_its_entry_says():
    model = Ddpm.make({"net": NET}, GRID)
    assert isinstance(model, Denoiser) and isinstance(model, Likelihood)
    assert model.meaning == "mean" and model.likelihood == "bound" and model.mass
    assert not Ddpm.make({"net": NET}, LINE).mass


def test_levels_are_those_of_the_paper_in_float64():
    levels = Ddpm.make({"net": NET}, GRID).levels
    assert levels.dtype == torch.float64 and len(levels) == 1000 and (levels.diff() < 0).all()
    assert float(1 / (1 + levels[0] ** 2)) == pytest.approx(4.036e-5, rel=1e-4)
    assert float(1 / (1 + levels[-1] ** 2)) == pytest.approx(0.9999, rel=1e-12)


def test_levels_survive_a_change_of_the_weights_type_and_are_not_saved():
    model = Ddpm.make({"net": NET}, GRID)
    assert model.bfloat16().levels.dtype == torch.float64
    assert all(key.startswith("net.") for key in model.state_dict())


def test_iterating_the_one_step_kernel_gives_the_closed_form():
    table = 1 / (1 + Ddpm.make({"net": NET}, GRID).levels.flip(0) ** 2)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    mean, variance = 1.0, 0.0  # of x_t given x_0 = 1
    for t in range(1000):
        mean, variance = mean * float((1 - beta[t]).sqrt()), variance * float(1 - beta[t]) + float(beta[t])
        assert mean == pytest.approx(float(table[t].sqrt()), rel=1e-10)
        assert variance == pytest.approx(float(1 - table[t]), rel=1e-10)


def test_posterior_mean_from_noise_and_from_x0_agree_with_the_papers_formulas():
    table = 1 / (1 + Ddpm.make({"net": NET}, GRID).levels.flip(0) ** 2)
    generator = torch.Generator().manual_seed(0)
    for t in (1, 2, 500, 999):
        now, before = table[t], table[t - 1]
        beta = 1 - now / before
        x0, eps = torch.randn(2, 50, generator=generator, dtype=torch.float64).unbind(0)
        x_t = now.sqrt() * x0 + (1 - now).sqrt() * eps
        from_eps = (x_t - beta / (1 - now).sqrt() * eps) / (1 - beta).sqrt()
        from_x0 = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - now)
        here, there = (1 / now - 1).sqrt(), (1 / before - 1).sqrt()
        ours = x0 + (there / here) ** 2 * (x_t / now.sqrt() - x0)  # in the coordinates x_0 + sigma n
        assert (from_eps - from_x0).abs().max() < 1e-10
        assert (ours * before.sqrt() - from_x0).abs().max() < 1e-10
        small, large = reverse_variances(here, there)
        assert float(small * before) == pytest.approx(float(beta * (1 - before) / (1 - now)), rel=1e-8)
        assert float(large * before) == pytest.approx(float(beta), rel=1e-8)


def test_exact_noise_prediction_gives_samples_with_the_datas_mean_and_spread():
    model, count = exact(0.3, 0.5), 4096
    *_, last = Ancestral.make().frames(model, model.spec, count, Rng.batch(0, total=count), {})
    assert abs(float(last.x.mean()) - 0.3) < 3 * 0.5 / count**0.5
    assert abs(float(last.x.std()) - 0.5) < 3 * 0.5 / (2 * count) ** 0.5


def test_noise_cannot_be_predicted_where_there_is_no_signal():
    with pytest.raises(GencliError, match="prediction eps"):
        Ddpm.make({"net": NET, "zero_terminal": True}, GRID)
    for prediction in ("v", "x0"):
        model = Ddpm.make({"net": NET, "zero_terminal": True, "prediction": prediction}, GRID)
        sigma = model.levels[0]
        estimate = model.denoise(model.start(torch.randn(2, 1, 2, 2), sigma), sigma)
        assert torch.isfinite(sigma) and sigma >= 1e4 and torch.isfinite(estimate).all()


def test_shift_needs_images_and_changes_nothing_at_64_pixels():
    with pytest.raises(GencliError, match="shift"):
        levels_of(Ddpm.Config(shift=True), Spec(Field("points", (2,))))
    spec = Spec(Field("image", (1, 64, 64)))
    plain, moved = (Ddpm.make({"net": NET, "shift": shift}, spec).levels for shift in (False, True))
    assert torch.equal(plain, moved)
    small = Ddpm.make({"net": NET, "shift": True}, Spec(Field("image", (1, 16, 16)))).levels
    assert torch.allclose(small, plain / 4, rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------- the bound


def test_every_term_of_the_bound_is_positive():
    torch.manual_seed(0)
    for variance in ("small", "large"):
        model = Ddpm.make({"net": NET, "timesteps": 50, "variance": variance}, GRID).eval()
        terms = model.bound_terms(torch.rand(8, 1, 2, 2) * 2 - 1, Rng.batch(0, total=8), samples=0)
        assert set(terms) == {"prior", "steps", "decoder"}
        assert all((term >= 0).all() for term in terms.values())


def test_the_prior_term_of_the_linear_schedule_is_negligible():
    model = Ddpm.make({"net": NET}, GRID)
    for value in (-1.0, 0.0, 1.0):
        prior = model.bound_terms(torch.full((1, 1, 2, 2), value), Rng.batch(0, total=1))["prior"]
        assert 0 <= float(prior) / (4 * math.log(2)) < 3e-5


def test_probabilities_of_the_256_grey_levels_sum_to_one():
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand(200, 1, generator=generator, dtype=torch.float64) * 2.4 - 1.2
    spread = torch.exp(torch.rand(200, 1, generator=generator, dtype=torch.float64) * 9 - 7)
    grid = torch.linspace(-1, 1, 256, dtype=torch.float64).expand(200, 256)
    log_p = discretised_gaussian(grid, mean, spread, (-1.0, 1.0), 2 / 255)
    assert torch.isfinite(log_p).all()
    assert (log_p.exp().sum(1) - 1).abs().max() < 1e-9


def test_far_tails_keep_their_digits():
    x = torch.tensor([-1.0, 1.0, 0.5 / 127.5], dtype=torch.float64)
    log_p = discretised_gaussian(
        x, torch.tensor([1.0, -1.0, 1.0]).double(), torch.tensor(0.01).double(), (-1.0, 1.0), 2 / 255
    )
    z = (2 - 1 / 255) / 0.01
    tail = -z * z / 2 - math.log(z * math.sqrt(2 * math.pi))
    assert log_p[0] == log_p[1] and float(log_p[0]) == pytest.approx(tail, rel=1e-6)
    assert torch.isfinite(log_p).all() and log_p[2] < -4000


def test_the_bound_is_the_sum_of_kullback_leibler_divergences_between_gaussians():
    """Against torch.distributions in the paper's own coordinates, for a network that predicts x0 = 0."""
    x = torch.tensor([[[[0.4, -0.2], [0.0, 1.0]]]], dtype=torch.float64)
    grid = (x * 127.5 + 127.5).round() / 127.5 - 1
    for variance in ("small", "large"):
        settings = {"net": NET, "timesteps": 20, "prediction": "x0", "variance": variance, "schedule": "cosine"}
        model = Ddpm.make(settings, GRID)
        model.net = Nothing()
        table = 1 / (1 + model.levels.flip(0) ** 2)
        total = torch.zeros(())
        for t in range(1, 20):
            now, before = table[t], table[t - 1]
            beta = 1 - now / before
            tilde = beta * (1 - before) / (1 - now)
            weight = before.sqrt() * beta / (1 - now)  # of x0 in the posterior's mean
            q = torch.distributions.Normal(weight * grid, tilde.sqrt())
            p = torch.distributions.Normal(0 * grid, (tilde if variance == "small" else beta).sqrt())
            total = total + torch.distributions.kl_divergence(q, p).sum()
        terms = model.bound_terms(grid, Rng.batch(0, total=1), samples=0)
        assert float(terms["steps"]) == pytest.approx(float(total), rel=1e-9)
        end = torch.distributions.Normal(table[-1].sqrt() * grid, (1 - table[-1]).sqrt())
        prior = torch.distributions.kl_divergence(end, torch.distributions.Normal(0 * grid, 1.0)).sum()
        assert float(terms["prior"]) == pytest.approx(float(prior), rel=1e-6)
        tilde_2 = (1 - table[1] / table[0]) * (1 - table[0]) / (1 - table[1])
        inside = discretised_gaussian(grid, 0 * grid, tilde_2.sqrt(), (-1.0, 1.0), 2 / 255)
        assert float(terms["decoder"]) == pytest.approx(float(-inside.sum()), rel=1e-6)
        whole = -model.log_prob(grid, Rng.batch(0, total=1), samples=0)
        assert float(whole) == pytest.approx(float(sum(terms.values())), rel=1e-12)


def test_a_few_steps_estimate_the_bound_without_bias():
    model = Ddpm.make({"net": NET, "timesteps": 30, "prediction": "x0"}, GRID)
    model.net = Nothing()  # so that only the choice of steps is random
    count = 4000
    x = torch.full((count, 1, 2, 2), 0.5, dtype=torch.float64)
    rng = Rng.batch(0, total=count)
    whole = model.bound_terms(x[:1], Rng.batch(0, total=1), samples=0)["steps"]
    for samples in (1, 4):
        drawn = model.bound_terms(x, rng, samples=samples)["steps"]
        error = float(drawn.std()) / count**0.5
        assert error > 0 and abs(float(drawn.mean() - whole)) < 4 * error, samples
    each = model.bound_terms(x[:5], Rng.batch(0, total=5), samples=29)["steps"]  # one step from each of 29 parts
    assert torch.allclose(each, whole.expand(5), rtol=1e-12)
    assert drawn.std() < 0.7 * model.bound_terms(x, rng, samples=1)["steps"].std()


class Quantiles:
    """In the place of random numbers: evenly spread normal quantiles, the same at every step."""

    def __init__(self, values):
        self.values = values

    def at(self, *keys):
        return self

    def normal(self, shape):
        return self.values.reshape(shape)


def test_on_a_gaussian_the_bound_is_above_the_true_value_and_closes_with_more_steps():
    """Apart from the decoder's: its variance is the paper's, not p(x_0 | x_1)'s, which costs what the closed form says."""
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    points = normal.icdf((torch.arange(120, dtype=torch.float64) + 0.5) / 120)
    x, n = torch.meshgrid(0.5 * points, points, indexing="ij")  # the mean over the grid is the expectation
    x = x.reshape(-1, 1, 1, 1)
    truth = -torch.distributions.Normal(0.0, 0.5).log_prob(x).mean()
    gaps = []
    for steps in (4, 16, 64, 256):
        model = exact(0.0, 0.5, timesteps=steps, schedule="cosine", variance="large")
        above = -model.log_prob(x, Quantiles(n), samples=0).mean() - truth
        assert float(above) > 0
        first, second = model.levels[-1] ** 2, model.levels[-2] ** 2
        right, used = 0.25 * first / (0.25 + first), first * (1 - first / second) / (1 + first)
        gaps.append(float(above - (right / used - 1 - (right / used).log()) / 2))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 8 * gaps[3], gaps


def test_an_items_bound_does_not_depend_on_its_batch_mates():
    torch.manual_seed(0)
    model = Ddpm.make({"net": NET, "timesteps": 20}, GRID).eval()
    nn.init.normal_(model.net.conv_out.weight)
    x = torch.rand(3, 1, 2, 2) * 2 - 1
    whole = model.log_prob(x, Rng.rows([5, 6, 7]), samples=3)
    alone = model.log_prob(x[1:2], Rng.rows([6]), samples=3)
    assert torch.allclose(whole[1:2], alone, rtol=1e-5)


# --------------------------------------------------------------------------------------------------------------- recipes


def recipe(name):
    return tomllib.loads((resources.files("gencli") / "recipes" / f"{name}.toml").read_text())


def test_the_cifar10_recipe_is_the_official_network():
    table = dict(recipe("ddpm-cifar10")["model"])
    assert table.pop("name") == "ddpm"
    spec = Spec(Field("image", (3, 32, 32), vocab=256, range=(-1.0, 1.0)))
    with torch.device("meta"):
        model = Ddpm(parse(Ddpm.Config, table), spec)
    assert sum(p.numel() for p in model.parameters()) == 35_746_307
    assert float(1 / (1 + model.levels[0] ** 2)) == pytest.approx(4.036e-5, rel=1e-4)


@pytest.mark.parametrize("name", ["ddpm", "ddpm-cifar10", "ddpm-fashion-mnist"])
def test_recipes_name_settings_that_exist(name):
    tables = recipe(name)
    choose("models", tables["model"])
    choose("samplers", {k: v for k, v in tables["sample"].items() if k != "guidance"})
