"""The probability-flow ODE against closed forms and torchdiffeq, and each row's independence of the others."""

import math

import pytest
import torch
from denoisers import Exact

from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.guidance._base import Guidance
from gencli.samplers._butcher import METHODS
from gencli.samplers._ode import _attempt, integrate, velocity, within
from gencli.samplers.ddim import Ddim
from gencli.samplers.pf_ode import PfOde

POINTS = Spec(Field("points", (1,)))


class Exploding(Exact):
    """Gaussian data at any level, noise without signal at the start."""

    levels, sigma_min, sigma_max = None, 0.002, 80.0

    def __init__(self, mean=0.3, std=0.5):
        self.mean, self.std = mean, std

    def start(self, noise, sigma):
        return noise * sigma


class Mixture(Exploding):
    """E[x0 | x] for two Gaussians of std 0.1 at ±0.6."""

    def denoise(self, x, sigma, **cond):
        sigma = sigma.reshape(-1, *[1] * (x.ndim - 1))
        variance = 0.01 + sigma**2
        return (0.01 * x + sigma**2 * 0.6 * torch.tanh(0.6 * x / variance)) / variance


def gaussian(model):
    """`Exact` for levels of each row's own."""
    return lambda x, sigma: Exact.denoise(model, x, sigma.reshape(-1, 1))


def frames(sampler, model, count, **kwargs):
    return list(sampler.frames(model, POINTS, count, Rng.rows(range(count)), {}, **kwargs))


def stepped(f, y, width, method):
    """y(width) in one step from y(0), whatever its error, by the solver's own arithmetic."""
    zero = y.new_zeros(len(y))
    return _attempt(f, zero, y, f(zero, y), zero + width, method)[0]


@pytest.mark.parametrize("solver", METHODS)
def test_every_table_has_the_order_that_it_says(solver):
    """One step of y' = y cos t, of which y = e^(sin t): its error falls with the step to the power of order + 1."""
    method, y = METHODS[solver], torch.ones(1, 1, dtype=torch.float64)
    for weights, node in zip(method.weights, method.nodes, strict=True):
        assert sum(weights) == pytest.approx(node, abs=1e-14)
    assert sum(method.error) == pytest.approx(0, abs=1e-14) and len(method.error) == len(method.nodes) + 1
    errors = [
        abs(float(stepped(lambda t, y: y * t.cos()[:, None], y, h, method)) - math.exp(math.sin(h)))
        for h in (0.5, 0.25)
    ]
    assert math.log2(errors[0] / errors[1]) > method.order + 0.5, errors


@pytest.mark.parametrize("solver", ["dopri5", "dopri8", "bosh3"])
@pytest.mark.parametrize("tolerance", [1e-3, 1e-6])
def test_gaussian_data_land_where_the_closed_form_says(solver, tolerance):
    """x_0 = μ + s / √(s² + σ_T²) (x_T − μ); the last step, a denoising one, is off by σ_min² / 2s² of it."""
    model, count = Exploding(), 12
    model.denoise = gaussian(model)
    sampler = PfOde.make({"solver": solver, "rtol": tolerance, "atol": tolerance})
    start = Rng.rows(range(count)).at("start").normal((count, 1)).double() * 80
    expected = 0.3 + 0.5 / math.sqrt(0.25 + 80**2) * (start - 0.3)
    *_, last = frames(sampler, model, count)
    assert (last.x - expected).abs().max() < 15 * tolerance + 2e-5


@pytest.mark.parametrize("solver", ["dopri5", "dopri8", "bosh3"])
def test_each_row_is_what_torchdiffeq_makes_of_it_alone(solver):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    flow = velocity(Mixture().denoise, torch.tensor(0.002), torch.tensor(80.0))
    y = torch.linspace(-150, 150, 4, dtype=torch.float64)[:, None] + 7
    times = torch.tensor([80, 0.5, 0.002], dtype=torch.float64).log()
    for tolerance in (1e-3, 1e-5):
        *_, ours = integrate(flow, y, times, within(tolerance, tolerance), solver)
        for i in range(len(y)):
            calls = []

            def alone(t, x, calls=calls):
                calls.append(t)
                return flow(t.reshape(1), x)

            theirs = torchdiffeq.odeint(alone, y[i : i + 1], times, rtol=tolerance, atol=tolerance, method=solver)
            assert (ours.y[i] - theirs[-1, 0]).abs().max() < 30 * tolerance
            assert 0.8 < int(ours.evaluations[i]) / len(calls) < 1.5


def test_a_row_does_not_depend_on_its_batch_mates_where_one_norm_for_all_would():
    torchdiffeq = pytest.importorskip("torchdiffeq")
    flow = velocity(Mixture().denoise, torch.tensor(0.002), torch.tensor(80.0))
    y = torch.tensor([[0.3], [100.0], [-3.0], [1e-3]], dtype=torch.float64)
    times = torch.tensor([80, 0.002], dtype=torch.float64).log()
    (whole,) = integrate(flow, y, times, within(1e-3, 1e-3))
    for i in range(len(y)):
        (alone,) = integrate(flow, y[i : i + 1], times, within(1e-3, 1e-3))
        assert torch.allclose(whole.y[i], alone.y[0], rtol=0, atol=1e-12)
        assert whole.evaluations[i] == alone.evaluations[0]
    assert len(set(whole.evaluations.tolist())) > 1

    def together(n):
        return torchdiffeq.odeint(lambda t, x: flow(t.reshape(1), x), y[:n], times, rtol=1e-3, atol=1e-3)[-1, 0]

    assert (together(4) - together(1)).abs().max() > 1e-6


def test_a_first_order_step_of_the_flow_is_ddims():
    """In σ: dx/dσ = (dx/du) / σ."""
    model, x = Mixture(), torch.tensor([[0.7], [-2.0]], dtype=torch.float64)
    here, there = torch.tensor([1.5, 1.2], dtype=torch.float64)
    flow = velocity(model.denoise, torch.tensor(0.002), torch.tensor(80.0))
    euler = x + (there - here) * flow(here.log().expand(2), x) / here
    assert (Ddim.make().step(model.denoise, x, here, there, {}, Rng.batch(0, total=2)) - euler).abs().max() < 1e-12


@pytest.mark.parametrize("make", [Exploding, Mixture])
@pytest.mark.parametrize(("settings", "reach"), [({}, 0.2), ({"rtol": 1e-5, "atol": 1e-5}, 0.3)])
def test_encoding_then_decoding_returns_the_data(make, settings, reach):
    """Where there are data: far between the modes the flow spreads what it cannot tell apart."""
    model, sampler = make(), PfOde.make(settings)
    denoise = gaussian(model) if make is Exploding else model.denoise
    half = torch.linspace(0.6 - reach, 0.6 + reach, 15, dtype=torch.float64)
    data, rng = torch.cat([-half, half])[:, None], Rng.batch(0, total=30)
    levels = sampler.levels(model)
    *_, noise = sampler.run(denoise, data, levels.flip(0), rng, rise="step")
    assert 0.1 < float((noise.x / 80).std()) < 2
    *_, back = sampler.run(denoise, noise.x, levels, rng)
    assert (back.x - data).abs().max() < 1e-3


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_the_states_on_the_way_do_not_change_the_end_and_are_close_to_the_flow(steps):
    model = Exploding()
    model.denoise = gaussian(model)
    sampler = PfOde.make({"steps": steps, "rtol": 1e-5, "atol": 1e-5})
    levels, made = sampler.levels(model), frames(sampler, model, 5)
    assert [(f.index, f.total) for f in made] == [(i, steps) for i in range(steps)]
    assert len(levels) == steps + 1 and levels[-1] == 0 and levels[0] == 80
    start = Rng.rows(range(5)).at("start").normal((5, 1)).double() * 80
    for frame, sigma in zip(made[:-1], levels[1:-1], strict=True):
        there = 0.3 + ((0.25 + sigma**2) / (0.25 + 80**2)).sqrt() * (start - 0.3)
        noisy = frame.info["noisy"] * (1 + sigma**2).sqrt()
        assert (noisy - there).abs().max() < 0.01 * sigma + 1e-3
        assert (frame.x - model.denoise(there, sigma)).abs().max() < 0.02
    if steps > 1:
        assert torch.equal(made[-1].x, frames(PfOde.make({"rtol": 1e-5, "atol": 1e-5}), model, 5)[-1].x)


def test_evaluations_are_estimated_before_and_counted_after():
    model, calls = Mixture(), []
    real = model.denoise

    def counted(x, sigma, **cond):
        calls.append(len(x))
        return real(x, sigma)

    model.denoise = counted
    for settings in ({}, {"solver": "bosh3"}, {"rtol": 1e-3, "atol": 1e-3}, {"steps": 1}):
        sampler, guessed = PfOde.make(settings), []
        for seed in range(3):
            calls.clear()
            *_, last = sampler.frames(model, POINTS, 1, Rng.rows([seed]), {})
            assert last.info["evaluations"].tolist() == [len(calls)]
            guessed.append(sampler.evaluations(model, POINTS) / len(calls))
        assert min(guessed) > 0.6 and max(guessed) < 1.7, guessed


def test_guidance_in_an_interval_is_each_rows_own():
    model = Mixture()
    model.spec = Spec(Field("points", (1,)), {"label": Field("label", (), vocab=2)})

    def conditional(x, sigma, label=None):
        sigma = sigma.reshape(-1, 1)
        side = 0.0 if label is None else (label * 2 - 1)[:, None] * 0.6
        return (0.09 * x + sigma**2 * side) / (0.09 + sigma**2)

    model.denoise = conditional
    sampler, guidance = PfOde.make({"rtol": 1e-3, "atol": 1e-3}), Guidance(2.0, (0.3, 3.0))
    label = torch.tensor([0, 1, 1, 0])
    *_, whole = sampler.frames(model, POINTS, 4, Rng.rows(range(4)), {"label": label}, guidance)
    for i in range(4):
        *_, alone = sampler.frames(model, POINTS, 1, Rng.rows([i]), {"label": label[i : i + 1]}, guidance)
        assert (alone.x[0] - whole.x[i]).abs().max() < 1e-9
    *_, plain = sampler.frames(model, POINTS, 4, Rng.rows(range(4)), {"label": label}, 1.0)
    assert (plain.x - whole.x).abs().min() > 0.01


def test_edits_between_levels_and_levels_that_turn_are_followed():
    model, sampler, rng = Mixture(), PfOde.make({"steps": 6, "rtol": 1e-6, "atol": 1e-6}), Rng.batch(0, total=3)
    levels, x = sampler.levels(model), torch.tensor([[30.0], [-90.0], [5.0]], dtype=torch.float64)
    *_, plain = sampler.run(model.denoise, x, levels, rng)
    *_, same = sampler.run(model.denoise, x, levels, rng, after=lambda x, there, rng: x)
    assert (plain.x - same.x).abs().max() < 1e-4
    *_, edited = sampler.run(model.denoise, x, levels, rng, after=lambda x, there, rng: x.abs())
    assert (edited.x > 0).all() and (plain.x < 0).any()
    turning = torch.tensor([80.0, 1.0, 5.0, 0.01, 0.0], dtype=torch.float64)
    *_, renoised = sampler.run(model.denoise, x, turning, rng)
    assert ((renoised.x.abs() - 0.6).abs() < 0.5).all()


def test_an_estimate_that_is_not_finite_or_cannot_be_followed_is_refused():
    y, times = torch.ones(2, 1, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    with pytest.raises(GencliError, match="not finite"):
        list(integrate(lambda t, y: y * float("nan"), y, times, within(1e-3, 1e-3)))
    with pytest.raises(GencliError, match="no step small enough"):
        list(integrate(lambda t, y: torch.where(t[:, None] > 0.5, float("nan"), y), y, times, within(1e-3, 1e-3)))


def test_steps_below_one_are_refused():
    with pytest.raises(GencliError, match="0"):
        frames(PfOde.make({"steps": 0}), Mixture(), 1)
