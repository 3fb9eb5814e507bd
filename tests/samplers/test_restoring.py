"""Samplers of restorations against closed forms: Gaussian posteriors, most probable images, and plain samplers without A."""

import pytest
import torch
from denoisers import Exact as OfGaussian

from gencli.config import NoSettings, choose
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.operators._base import LinearOperator
from gencli.operators.inpaint import Inpaint
from gencli.samplers.ancestral import Ancestral
from gencli.samplers.ddim import Ddim
from gencli.samplers.ddrm import Ddrm
from gencli.samplers.dps import Dps
from gencli.samplers.pnp import Pnp
from gencli.samplers.posterior import Posterior
from gencli.samplers.red import Red

FIELD = Field("image", (1, 4, 4), range=(-1.0, 1.0))
SPEC = Spec(FIELD)
TABLES = [
    {"name": "inpaint", "mask": "top-half"},
    {"name": "super-resolution", "factor": 2},
    {"name": "deblur", "width": 0.7},
    {"name": "compressed-sensing", "share": 0.5},
]
IDS = [table["name"] for table in TABLES]


class Exact(OfGaussian):
    """Of images."""

    spec = SPEC


class Blind(LinearOperator):
    """Measures nothing."""

    def __init__(self):
        super().__init__(NoSettings(), FIELD)
        self.values = torch.zeros(16, dtype=torch.float64)

    def rotate(self, x):
        return x.flatten(1)

    def back(self, c):
        return c.view(-1, *FIELD.shape)

    lift = back
    lower = rotate


class All(Blind):
    """Measures everything."""

    def __init__(self):
        super().__init__()
        self.values = torch.ones(16, dtype=torch.float64)


def measured(table, x, noise=0.0):
    operator = choose("operators", table).build(FIELD)
    y = operator.measure(x)
    return operator, y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)


def truth(n=1, seed=0):
    return torch.rand((n, *FIELD.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def drawn(sampler, model, y, n, seed=0):
    cond = {} if y is None else {"measured": y.expand(n, *y.shape[1:])}
    frames = list(sampler.frames(model, SPEC, n, Rng.batch(seed, total=n), cond))
    return frames[-1].x, frames


def without(sampler, operator, monkeypatch):
    """The sampler with an operator that has no name."""
    monkeypatch.setattr(type(sampler), "operator", lambda self, spec: operator)
    return sampler


# --------------------------------------------------------------------------------------------------------------------- dps


def test_dps_that_follows_nothing_is_ancestral_sampling_bit_for_bit():
    _, y = measured(TABLES[0], truth())
    plain = drawn(Ancestral.make({"steps": 10}), Exact(0.1, 0.5), None, 4)[0]
    assert torch.equal(
        drawn(Dps.make({"steps": 10, "scale": 0, "operator": TABLES[0]}), Exact(0.1, 0.5), y, 4)[0], plain
    )


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_the_step_of_dps_is_the_closed_form_for_gaussian_data(table):
    model, x = Exact(0.1, 0.5), truth(3, seed=5) * 2
    operator, y = measured(table, truth(3))
    here, there = torch.tensor(1.5, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    sampler = Dps.make({"scale": 0.7, "operator": table})
    led = sampler.step(model.denoise, x, here, there, {"operator": operator, "y": y}, Rng.batch(0, total=3))
    plain = Ancestral.make().step(model.denoise, x, here, there, {}, Rng.batch(0, total=3))
    a = 0.25 / (0.25 + here**2)  # D = a x + b
    left = y - operator.measure(model.denoise(x, here))
    slope = -a * operator.adjoint(left) / left.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    vp = ((1 + here**2) * (1 + there**2)).sqrt()
    assert torch.allclose(led, plain - 0.7 * vp * slope, atol=1e-10)


def test_dps_explains_the_measurement_better_and_better():
    x = truth()
    operator, y = measured(TABLES[0], x)
    model = Exact(0.0, 0.6)

    def left(scale):
        _, frames = drawn(Dps.make({"steps": 100, "scale": scale, "operator": TABLES[0], "clip": False}), model, y, 16)
        return [float((y - operator.measure(frame.x)).flatten(1).norm(dim=1).mean()) for frame in frames]

    led, free = left(1.0), left(0.0)
    assert led[-1] < led[len(led) // 2] < led[5] and led[-1] < 0.3 * free[-1]


def test_phase_retrieval_is_led_too():
    operator = choose("operators", "phase-retrieval").build(FIELD)
    y = operator.measure(truth())
    table = {"steps": 100, "operator": "phase-retrieval"}
    led, free = (drawn(Dps.make({**table, "scale": s}), Exact(0, 0.6), y, 16)[0] for s in (1.0, 0.0))
    near, far = ((y - operator.measure(x)).flatten(1).norm(dim=1).mean() for x in (led, free))
    assert near < 0.5 * far


# -------------------------------------------------------------------------------------------------------------------- ddrm


@pytest.mark.parametrize("eta", [0.0, 0.6])
def test_ddrm_without_a_measurement_is_ddim(eta, monkeypatch):
    model = Exact(0.1, 0.5)
    sampler = without(Ddrm.make({"steps": 8, "eta": eta}), Blind(), monkeypatch)
    made = drawn(sampler, model, torch.zeros(1, *FIELD.shape), 5)[0]
    if eta == 0:
        assert torch.allclose(made, drawn(Ddim.make({"steps": 8}), model, None, 5)[0], atol=1e-9)
        return
    rng, levels = Rng.batch(0, total=5), sampler.levels(model)
    x = model.start(rng.at("start").normal((5, *FIELD.shape)).double(), levels[0])
    for i in range(8):
        here, there = levels[i], levels[i + 1]
        x0 = model.denoise(x, here).clamp(-1, 1)
        z = rng.at("step", i).normal(x.shape).double()
        x = x0 + (1 - eta**2) ** 0.5 * there * (x - x0) / here + eta * there * z
    assert torch.allclose(made, x, atol=1e-9)


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_ddrm_ends_with_what_was_measured_where_there_is_no_noise(table):
    operator, y = measured(table, truth())
    made = drawn(Ddrm.make({"noise": 0, "operator": table}), Exact(0.1, 0.5), y, 4)[0]
    assert (operator.measure(made) - y).abs().max() < 1e-5


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_ddrm_keeps_every_coefficient_at_the_models_own_law(table):
    """With a denoiser that knows the image, each is N(x₀, σ²) at every level: of 8,000 draws of image and noise, within 5 %."""
    n, x = 8000, truth()
    operator = choose("operators", table).build(FIELD)
    clean = operator.measure(x).expand(n, *operator.measure(x).shape[1:])
    noisy = clean + 0.2 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sampler = Ddrm.make({"steps": 4, "noise": 0.2, "operator": table, "clip": False})
    model = Exact()
    model.denoise = lambda given, sigma, **cond: x.expand_as(given)
    frames = sampler.frames(model, SPEC, n, Rng.batch(0, total=n), {"measured": noisy})
    for frame in frames:
        sigma = frame.info["sigma"]
        if sigma == 0:
            continue
        off = operator.rotate(frame.info["noisy"] * (1 + sigma**2).sqrt() - x)
        assert off.mean(0).abs().max() < 0.05 * sigma and (off.std(0) / sigma - 1).abs().max() < 0.05


# --------------------------------------------------------------------------------------------------------------- posterior


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_the_posterior_of_gaussian_data_has_its_mean_and_covariance(table):
    s, noise, n = 0.6, 0.3, 4000
    operator, y = measured(table, truth(), noise)
    matrix = operator.measure(torch.eye(16, dtype=torch.float64).view(16, *FIELD.shape)).flatten(1).T
    gain = s**2 * matrix.T @ torch.linalg.inv(s**2 * matrix @ matrix.T + noise**2 * torch.eye(len(matrix)).double())
    mean = 0.1 + gain @ (y.flatten() - matrix @ torch.full((16,), 0.1, dtype=torch.float64))
    covariance = s**2 * (torch.eye(16).double() - gain @ matrix)
    settings = {"steps": 500, "deviation": s, "noise": noise, "operator": table, "clip": False}
    made = drawn(Posterior.make(settings), Exact(0.1, s), y, n)[0].flatten(1)
    assert (made.mean(0) - mean).abs().max() < 4 * s / n**0.5
    assert (torch.cov(made.T) - covariance).abs().max() < 5 * s**2 * (2 / n) ** 0.5
    assert (made.mean(0) - 0.1).abs().max() > 0.3, "the prior alone would fail"


# ------------------------------------------------------------------------------------------------------------- pnp and red


def quadratic():
    """A smooth prior's precision `(16, 16)`, and its proximal step as a denoiser: |x − z|² / 2σ² + xᵀ P x / 2."""
    root = torch.randn(16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64) / 4
    precision = root @ root.T + 0.2 * torch.eye(16, dtype=torch.float64)

    def denoise(z, sigma):
        inner = torch.linalg.inv(torch.eye(16, dtype=torch.float64) + sigma**2 * precision)
        return (z.flatten(1) @ inner).view_as(z)

    return precision, denoise


def settled(sampler, denoise, operator, y, noise):
    model = Exact()
    model.denoise = lambda x, sigma, **cond: denoise(x, sigma)
    memory = {"operator": operator, "y": y}
    levels = sampler.levels(model)
    x = sampler.begin(model, torch.zeros(1, *FIELD.shape, dtype=torch.float64), levels[0], memory)
    changes = []
    for frame in sampler.run(model.denoise, x, levels, Rng.batch(0, total=1), memory=memory):
        now = frame.info["noisy"] * (1 + frame.info["sigma"] ** 2).sqrt()
        changes.append(float((now - x).norm()))
        x = now
    return x, changes


def matrices(operator):
    matrix = operator.measure(torch.eye(16, dtype=torch.float64).view(16, *FIELD.shape)).flatten(1).T
    return matrix, matrix.T @ matrix


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_pnp_with_a_quadratic_prior_reaches_the_most_probable_image(table):
    operator, y = measured(table, truth(), 0.3)
    precision, denoise = quadratic()
    matrix, normal = matrices(operator)
    wanted = torch.linalg.solve(normal / 0.09 + precision, matrix.T @ y.flatten() / 0.09)
    sampler = Pnp.make({"steps": 400, "high": 0.5, "low": 0.5, "noise": 0.3, "operator": table})
    found, changes = settled(sampler, denoise, operator, y, 0.3)
    assert (found.flatten() - wanted).abs().max() < 1e-5 and changes[-1] < 1e-3 * changes[3]


def test_pnp_of_everything_measured_and_no_prior_returns_the_measurement():
    y = truth()
    sampler = Pnp.make({"steps": 5, "high": 0.5, "low": 0.5})
    found, _ = settled(sampler, lambda z, sigma: z, All(), y, 0.05)
    assert (found - y).abs().max() < 1e-12


@pytest.mark.parametrize("solver", ["fixed-point", "descent", "admm"])
@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_every_solver_of_red_reaches_the_closed_form_of_a_linear_denoiser(table, solver):
    operator, y = measured(table, truth(), 0.3)
    _, denoise = quadratic()
    matrix, normal = matrices(operator)
    level = torch.tensor(0.5, dtype=torch.float64)
    smooth = denoise(torch.eye(16, dtype=torch.float64).view(16, *FIELD.shape), level).flatten(1)
    pull = 1 / 0.25
    whole = normal / 0.09 + pull * (torch.eye(16, dtype=torch.float64) - smooth)
    wanted = torch.linalg.solve(whole, matrix.T @ y.flatten() / 0.09)
    sampler = Red.make({"steps": 2000, "level": 0.5, "noise": 0.3, "method": solver, "operator": table})
    found, _ = settled(sampler, denoise, operator, y, 0.3)
    assert (found.flatten() - wanted).abs().max() < 1e-5


def test_red_without_a_prior_is_least_squares():
    table = {"name": "deblur", "width": 0.5}
    operator, y = measured(table, truth())
    found, _ = settled(Red.make({"steps": 3, "weight": 0, "operator": table}), lambda z, s: 0 * z, operator, y, 0.05)
    assert torch.allclose(found, operator.pseudo_inverse(y), atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("sampler", [Dps, Ddrm, Pnp, Red, Posterior])
def test_without_a_measurement_it_is_said(sampler):
    with pytest.raises(GencliError, match="restores images and was given none"):
        drawn(sampler.make({"steps": 3}), Exact(), None, 1)


@pytest.mark.parametrize("sampler", [Ddrm, Pnp, Red, Posterior])
def test_an_operator_without_singular_values_is_refused(sampler):
    with pytest.raises(GencliError, match="needs a linear operator, phase-retrieval is none"):
        drawn(sampler.make({"steps": 3, "operator": "phase-retrieval"}), Exact(), truth(), 1)


def test_levels_that_rise_are_refused():
    with pytest.raises(GencliError, match="low 2 is above high 1"):
        Pnp.make({"low": 2.0}).levels(Exact())


def test_inpainting_is_what_is_restored_unless_asked():
    assert isinstance(Dps.make().operator(SPEC), Inpaint)
