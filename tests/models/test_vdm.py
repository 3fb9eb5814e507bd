"""VDM: its bound against closed forms, the learned schedule, even times, the decoder over grey levels, official sizes."""

import math

import numpy as np
import pytest
import torch
from diffused import CIFAR, MLP, POINTS, SPEC, Told, counted
from torch import nn

from gencli.core import Denoiser, Field, Likelihood, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion.vdm import TOLD, Monotone, Vdm, log_softmax_of_levels
from gencli.samplers.ancestral import Ancestral

LINE = Spec(Field("points", (1,)))
UNET = {"name": "vdm-unet", "width": 8, "layers": 1}
STD2 = 0.3


@pytest.mark.parametrize(("name", "count"), [("vdm-cifar10", 30_578_181), ("vdm-cifar10-aug", 122_140_677)])
def test_parameter_counts_are_the_official_ones(name, count):
    assert counted(name, CIFAR)[0] == count


def test_it_offers_what_its_entry_says():
    model = Vdm.make({"net": UNET}, SPEC)
    assert isinstance(model, Denoiser) and isinstance(model, Likelihood) and model.mass
    assert not Vdm.make({"net": MLP}, LINE).mass
    assert model.sigma_min == pytest.approx(math.exp(-6.65) * 256 / 255, rel=1e-6)
    assert model.sigma_max == pytest.approx(math.exp(2.5) * 256 / 255, rel=1e-6)


class Exact(nn.Module):
    """The exact noise prediction for data N(0, STD2)."""

    def __init__(self, low, high):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.low, self.high = low, high

    def forward(self, x, level, **cond):
        variance = (self.low + level / TOLD * (self.high - self.low)).exp()[:, None]  # σ², which the network is told
        return x * (1 + variance).sqrt() * variance.sqrt() / (STD2 + variance)


class Even:
    """In the place of random numbers: the given times, and noise ±1, for which mean squares are exact."""

    def __init__(self, time, noise):
        self.time, self.noise = time, noise

    def at(self, *keys):
        return self

    def stratified(self, n):
        return self.time

    def normal(self, shape):
        return self.noise.reshape(shape)


def exact(low=-10.0, high=8.0, **settings):
    model = Vdm.make({"net": MLP, "gamma_min": low, "gamma_max": high, **settings}, LINE).double()
    model.net = Exact(low, high)
    return model


def both_signs(time):
    """Each time twice, data of the right mean square, and noise of either sign: expectations of squares are exact."""
    noise = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(len(time))
    return torch.full((2 * len(time), 1), STD2**0.5, dtype=torch.float64), Even(time.repeat_interleave(2), noise)


def diffusion(model, time):
    """The expected diffusion term in nats at each time."""
    data, rng = both_signs(time)
    with torch.no_grad():
        return model._steps(data, rng.time, rng, {}).reshape(-1, 2).mean(1)


def integral(model):
    """Of the diffusion term over time, by Gauss-Legendre quadrature."""
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(300))
    return float((diffusion(model, (nodes + 1) / 2) * weights).sum() / 2)


CLOSED = 0.5 * math.log((1 + STD2 * math.exp(10)) / (1 + STD2 * math.exp(-8)))


def bend(model):
    """A schedule far from linear, and another one."""
    with torch.no_grad():
        between = model.gamma.between
        between.inner.fill_(9.0)
        between.bias.fill_(-2.0)
        between.outer.fill_(3.0)
    return model


def test_with_the_exact_denoiser_the_loss_is_the_closed_form_whatever_the_schedule_between_its_ends():
    straight, bent = exact(), bend(exact(gamma="network"))
    middle = bent.gamma(torch.tensor([0.5], dtype=torch.float64))[0]
    assert (middle + 1).abs() > 2, "the other schedule is another one"
    assert integral(straight) == pytest.approx(CLOSED, abs=1e-6)
    assert integral(bent) == pytest.approx(CLOSED, abs=1e-6)
    assert pytest.approx(4.398, abs=1e-3) == CLOSED


@pytest.mark.parametrize(("steps", "expected"), [(10, 11.08), (20, 6.77), (40, 5.41)])
def test_with_more_steps_the_bound_falls_towards_it(steps, expected):
    for each in (1, 7):  # a time is its step
        time = (torch.arange(each * steps, dtype=torch.float64) + 0.5) / (each * steps)
        assert float(diffusion(exact(timesteps=steps), time).mean()) == pytest.approx(expected, abs=0.005)


def test_on_gaussian_data_the_three_parts_of_the_loss_are_the_entropy_in_bits():
    data, rng = both_signs(torch.tensor([0.3], dtype=torch.float64))
    losses = exact().eval()({"x": data}, Turn("main", 0, 1, rng))
    ends = float(losses["prior"] + losses["reconstruction"]) * math.log(2)
    assert ends + CLOSED == pytest.approx(0.5 * math.log(2 * math.pi * math.e * STD2), abs=1e-3)
    assert float(losses["loss"].detach()) == pytest.approx(
        sum(float(losses[k]) for k in ("prior", "reconstruction", "diffusion"))
    )


def test_the_bound_of_an_item_is_the_sum_of_its_parts_without_bias():
    model, count = exact(), 4000
    x = torch.full((count, 1), 0.4, dtype=torch.float64)
    with torch.no_grad():
        made = {n: -model.log_prob(x, Rng.batch(n, total=count), samples=n) for n in (1, 16)}
    apart = float(made[1].mean() - made[16].mean())
    assert abs(apart) < 4 * float(made[1].std()) / count**0.5
    assert made[16].std() < 0.4 * made[1].std()


def test_rows_of_the_bound_do_not_depend_on_each_other():
    model = exact()
    x = torch.randn(3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, alone = model.log_prob(x, Rng.rows([5, 6, 7]), 2), model.log_prob(x[1:2], Rng.rows([6]), 2)
    assert torch.allclose(whole[1:2], alone, rtol=1e-9)


def test_even_times_lower_the_variance_of_the_loss():
    model, count = exact(), 32
    even, free = (
        torch.stack([diffusion(model, time.double()).mean() for time in times])
        for times in (
            [Rng.batch(seed, total=count).stratified(count) for seed in range(40)],
            [Rng.batch(seed, total=count).uniform((count,)) for seed in range(40)],
        )
    )
    assert even.std() < 0.2 * free.std() and float(even.mean()) == pytest.approx(CLOSED, rel=0.01)


# ---------------------------------------------------------------------------------------------------------------- decoder


@pytest.mark.parametrize("sigma", [1.3e-3, 0.01, 0.4])
def test_the_decoder_is_the_softmax_over_all_grey_levels(sigma):
    rng = Rng.batch(0, total=300)
    x = rng.at("x").integers((300, 1), 256).double() / 127.5 - 1
    noise, s = rng.at("n").normal((300, 1)).double() * 1.5, torch.tensor(sigma, dtype=torch.float64, requires_grad=True)
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)
    logits = -(((x + s * noise) - values) ** 2) / (2 * s**2)
    whole = logits.log_softmax(1).gather(1, ((x + 1) * 127.5).round().long())
    made = log_softmax_of_levels(x, noise, s, (-1.0, 1.0), 256)
    assert torch.allclose(made, whole, atol=1e-10)
    ours, theirs = (torch.autograd.grad(log_p.sum(), s, retain_graph=True)[0] for log_p in (made, whole))
    assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-6) and torch.isfinite(ours)


def test_the_network_sees_the_official_encoding_of_grey_levels():
    """2 (k + ½) / 256 − 1 for grey level k, scaled to unit variance, and γ between 0 and 1000."""
    model = Vdm.make({"net": UNET}, SPEC)
    model.net = Told(lambda x, level, **cond: x * 0, torch.float64)
    grey = torch.arange(16).reshape(1, 1, 4, 4) * 17
    data, noise = grey.double() / 127.5 - 1, torch.full((1, 1, 4, 4), 0.3, dtype=torch.float64)
    for time, gamma in ((0.0, -13.3), (0.25, -8.725), (1.0, 5.0)):
        sigma = model.sigma_at(torch.tensor([time], dtype=torch.float64))
        model.denoise(data + sigma * noise, sigma)
        keep, part = (torch.sigmoid(torch.tensor(g, dtype=torch.float64)).sqrt() for g in (-gamma, gamma))
        official = keep * (2 * (grey + 0.5) / 256 - 1) + part * noise
        assert torch.allclose(model.net.asked[0], official, atol=1e-6)
        assert float(model.net.asked[1]) == pytest.approx(1000 * time, abs=1e-3)


# --------------------------------------------------------------------------------------------------------------- schedule


def test_the_monotone_network_rises_and_knows_its_slope():
    torch.manual_seed(0)
    net = Monotone(50).double()
    with torch.no_grad():
        for weight in net.parameters():
            weight.copy_(torch.randn(50).double() * 3)
    time = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    value, slope = net(time)
    (exact_slope,) = torch.autograd.grad(value.sum(), time)
    assert torch.allclose(slope, exact_slope, rtol=1e-9) and (value.diff() > 0).all() and slope.max() > 2


def gradients(square):
    """Gradients of the schedule's parameters, by the model or by differentiating the mean of L² of each item."""
    torch.manual_seed(0)
    model = bend(exact(gamma="network"))
    count = 256
    data = STD2**0.5 * Rng.batch("x", total=count).normal((count, 1)).double()
    rng = Rng.batch(3, total=count)
    if square:
        (model._steps(data, rng.at("t").stratified(count), rng, {}) ** 2).mean().backward()
    else:
        model._steps(data, rng.at("t").stratified(count), rng, {}, train=True).mean().backward()
    return {name: p.grad.clone() for name, p in model.gamma.named_parameters()}


def test_between_its_ends_the_schedule_is_trained_to_lower_the_variance():
    ours, squares = gradients(False), gradients(True)
    for name in ("between.inner", "between.bias", "between.outer"):
        assert torch.allclose(ours[name], squares[name], rtol=1e-9) and ours[name].abs().max() > 1e-6
    assert not torch.allclose(ours["w"], squares["w"], rtol=0.1), "its ends by the bound itself"


def test_training_the_schedule_lowers_the_variance_and_keeps_the_mean():
    model, count = bend(exact(gamma="network")), 256
    time = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000

    def moments():
        with torch.no_grad():
            data = STD2**0.5 * Rng.batch("m", total=2000).normal((2000, 1)).double()
            nats = model._steps(data, time, Rng.batch("n", total=2000), {})
        return float(nats.mean()), float(nats.var())

    before = moments()
    optimiser = torch.optim.Adam(model.gamma.between.parameters(), lr=0.1)
    for step in range(60):
        rng = Rng.batch("train", step, total=count)
        data = STD2**0.5 * rng.at("x").normal((count, 1)).double()
        optimiser.zero_grad()
        model._steps(data, rng.at("t").stratified(count), rng.at("n"), {}, train=True).mean().backward()
        optimiser.step()
    after = moments()
    assert after[1] < 0.7 * before[1]
    assert after[0] == pytest.approx(CLOSED, rel=0.1) == before[0]


def test_samples_of_the_exact_denoiser_have_the_datas_spread():
    model, count = exact(-8.0, 6.0), 4000
    *_, last = Ancestral.make({"steps": 200}).frames(model, LINE, count, Rng.batch(0, total=count), {})
    assert float(last.x.std()) == pytest.approx(STD2**0.5, rel=0.06)


def test_a_schedule_that_does_not_rise_is_refused():
    with pytest.raises(GencliError, match=r"gamma_min 5.0 is not below gamma_max -13.3"):
        Vdm.make({"net": MLP, "gamma_min": 5.0, "gamma_max": -13.3}, POINTS)
