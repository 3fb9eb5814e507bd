"""The first diffusion model, Gaussian: its bound against closed forms, the paper's reverse step, learned noise."""

import math

import numpy as np
import pytest
import torch
from diffused import MLP, POINTS, SPEC, Told

from gencli import recipe
from gencli.bundle import Run
from gencli.core import Denoiser, Field, Likelihood, Rng, Spec, Turn
from gencli.data import open_table
from gencli.data.toy2d import draw
from gencli.metrics.wasserstein import directions
from gencli.models.diffusion.dpm2015 import Dpm2015
from gencli.samplers.ancestral import Ancestral
from gencli.training.session import Session, resolve

LINE = Spec(Field("points", (1,)))


class Signs:
    """In the place of random numbers: noise ±1 in turn, for which mean squares are exact, and one step for all."""

    def __init__(self, step=0):
        self.step = step

    def at(self, *keys):
        return self

    def integers(self, shape, high):
        return torch.full(shape, self.step)

    def normal(self, shape):
        return torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(shape[0] // 2).reshape(-1, 1).expand(shape)


def told(answer, spec=LINE, **settings):
    """A model with noise unlike what it starts with, whose network gives `answer(x)`, twice as many channels."""
    model = Dpm2015.make({"net": MLP, "timesteps": 12, **settings}, spec)
    with torch.no_grad():
        model.shift.copy_(torch.randn(len(model.shift), generator=torch.Generator().manual_seed(5)) * 0.5)
    model.net = Told(lambda x, level, **cond: answer(x), torch.float64)
    return model


def test_it_offers_what_its_entry_says():
    model = Dpm2015.make({"net": MLP}, POINTS)
    assert isinstance(model, Denoiser) and isinstance(model, Likelihood) and not model.mass
    assert not Dpm2015.make({"net": {"name": "unet", "width": 8, "mults": (1,), "attention": ()}}, SPEC).mass
    kept = 1 / (1 + model.levels.flip(0) ** 2)
    beta = 1 - kept / torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    start = [1e-3] + [1 / (40 - t + 2) for t in range(2, 41)]
    assert torch.allclose(beta, torch.tensor(start, dtype=torch.float64), rtol=1e-6)


@pytest.mark.parametrize("learned", [True, False])
def test_with_the_exact_reverse_kernel_every_items_bound_is_its_log_probability(learned):
    """Data N(0, 1): x_t ~ N(0, 1) for every t, f_μ = 0 and the variance β, which v = 1 gives."""
    model = told(lambda x: torch.cat([x * 0, x * 0 + 40], 1), learned_betas=learned)
    for value in (-2.0, 0.3, 1.0):
        x = torch.full((2, 1), value, dtype=torch.float64)
        with torch.no_grad():
            terms = model.bound_terms(x, Signs(), samples=0)
            whole = model.log_prob(x, Signs(), samples=0)
        log_p = -(value**2) / 2 - math.log(2 * math.pi) / 2
        assert float(whole.mean()) == pytest.approx(log_p, abs=1e-6)
        assert float(sum(terms.values()).mean()) == pytest.approx(-log_p, abs=1e-6)


def test_every_term_is_that_of_the_papers_gaussians():
    """In the paper's own coordinates, with torch.distributions."""
    model = told(lambda x: torch.cat([0.3 * x + 0.1, 0.5 * x - 0.2], 1))
    kept = 1 / (1 + model.levels.flip(0) ** 2)
    x0 = torch.tensor([[0.7], [0.7]], dtype=torch.float64)
    noise = Signs().normal((2, 1))
    for t in range(1, 12):
        beta, before = 1 - kept[t] / kept[t - 1], kept[t - 1]
        x_t = kept[t].sqrt() * x0 + (1 - kept[t]).sqrt() * noise
        tilde = beta * (1 - before) / (1 - kept[t])
        mean = (before.sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - before) * x_t) / (1 - kept[t])
        v = torch.sigmoid(0.5 * x_t - 0.2)
        p = torch.distributions.Normal(
            (1 - beta).sqrt() * x_t + beta.sqrt() * (0.3 * x_t + 0.1), (beta**v * tilde ** (1 - v)).sqrt()
        )
        expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, tilde.sqrt()), p)[:, 0]
        with torch.no_grad():
            made = model.eval()({"x": x0}, Turn("main", 0, 1, Signs(t - 1)))
        assert float(made["steps"]) * math.log(2) / 11 == pytest.approx(float(expected.mean()), rel=1e-6), t
        assert float(made["loss"]) == pytest.approx(float(made["steps"] + made["prior"] + made["decoder"]))


def test_the_two_ends_are_the_papers_entropies_where_the_mean_square_of_the_data_is_1():
    model = told(lambda x: torch.cat([x, x], 1))
    kept = 1 / (1 + model.levels.flip(0) ** 2)
    x = torch.tensor([[0.6], [-((2 - 0.36) ** 0.5)]], dtype=torch.float64)
    with torch.no_grad():
        terms = model.bound_terms(x, Signs(), samples=0)

    def entropy(variance):
        return 0.5 * math.log(2 * math.pi * math.e * float(variance))

    papers = entropy(1 - kept[0]) - entropy(1 - kept[-1]) + entropy(1)
    assert float((terms["prior"] + terms["decoder"]).mean()) == pytest.approx(papers, rel=1e-9)


def test_the_noise_of_all_steps_but_the_first_is_learned():
    model = Dpm2015.make({"net": MLP, "timesteps": 8}, POINTS)
    with torch.no_grad():
        for p in model.net.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    model({"x": x}, Turn("main", 0, 1, Rng.batch(0, total=64)))["loss"].backward()
    assert (model.shift.grad != 0).all() and len(model.shift) == 7
    first = model.levels[-1]
    with torch.no_grad():
        model.shift += 1
    assert model.levels[-1] == first and (model.levels.diff() < 0).all()
    fixed = Dpm2015.make({"net": MLP, "learned_betas": False}, POINTS)
    assert "shift" in dict(model.named_parameters()) and "shift" not in dict(fixed.named_parameters())


def test_samples_of_the_exact_chain_have_the_datas_spread():
    model, count = told(lambda x: torch.cat([x * 0, x * 0 + 40], 1)), 8000
    *_, last = Ancestral.make().frames(model, LINE, count, Rng.batch(0, total=count), {})
    assert float(last.x.std()) == pytest.approx(1.0, abs=0.03)


def test_images_are_dequantised():
    model = Dpm2015.make({"net": {"name": "unet", "width": 8, "mults": (1,), "attention": ()}}, SPEC)
    data, _ = model.prepared({"x": torch.zeros(200, 1, 4, 4)}, Rng.batch(0, total=200))
    assert data.abs().max() <= 1 / 255 and float(data.std()) == pytest.approx(2 / 255 / 12**0.5, rel=0.05)


@pytest.mark.slow
def test_the_swiss_roll_is_reproduced(tmp_path):
    table = resolve(recipe.load("dpm2015"))
    session = Session(table, open_table(table["data"]), tmp_path)
    for _ in session.events():
        pass
    theta, count = directions(2, 128).T, 4096

    def apart(a, b):
        return float(np.sqrt(np.square(np.sort(a @ theta, 0) - np.sort(b @ theta, 0)).mean()))

    def real(seed):
        return draw("swiss-roll", Rng.batch("real", seed, total=count))[0].numpy()

    bar = 1.5 * np.quantile([apart(real(2 * i), real(2 * i + 1)) for i in range(20)], 0.95)
    run = Run.load(session.folder)
    made = [run.sample(Rng.rows(range(s * count, (s + 1) * count)))["x"].numpy().astype(float) for s in range(3)]
    gaussian = np.random.default_rng(0).multivariate_normal(real(99).mean(0), np.cov(real(99).T), count)
    assert np.median([apart(x, real(100 + s)) for s, x in enumerate(made)]) <= bar < apart(gaussian, real(7))
