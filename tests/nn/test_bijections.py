"""Invertible maps: there and back, the volume, and closed forms."""

import math

import pytest
import torch
from flow_laws import jacobian, points, shaken, slogdet, tells_its_volume, undoes

from gencli.nn.affine_autoregressive import AffineAutoregressive, Autoregressive
from gencli.nn.bijection import Chain, Inverse, Normalisation, Permutation, Reversal
from gencli.nn.masked_mlp import MaskedMlp
from gencli.nn.planar import LEAST, Planar, Radial
from gencli.nn.spline import Spline, inverse_rational_quadratic, rational_quadratic
from gencli.nn.univariate import Affine, Gate, Shift

D = 6


def maps(dim=D, context=0):
    torch.manual_seed(0)
    spline = Spline(5, 3.0)
    return {
        "planar": Planar(dim, context),
        "radial": Radial(dim, context),
        "affine": AffineAutoregressive(dim, (16, 16), context),
        "gate": AffineAutoregressive(dim, (16,), context, reverse=True, gate=True),
        "spline": Autoregressive(MaskedMlp(dim, (16,), spline.numbers, context), spline),
    }


NAMES = sorted(maps())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("context", [0, 3])
def test_every_map_is_undone_and_tells_its_volume(name, context):
    made = shaken(maps(context=context)[name])
    c = points(8, context, seed=3) if context else None
    x = points(8, D, scale=1.5)
    undoes(lambda v: made(v, c), lambda v: made.inverse(v, c), x)
    for i in range(3):
        row = None if c is None else c[i : i + 1]
        tells_its_volume(lambda v, row=row: made(v, row), x[i : i + 1])
        tells_its_volume(lambda v, row=row: made.inverse(v, row), x[i : i + 1])


@pytest.mark.parametrize("name", NAMES)
def test_a_context_changes_each_row_alone(name):
    made = shaken(maps(context=3)[name])
    x, c = points(4, D), points(4, 3, seed=3)
    whole = made(x, c)[0]
    for i in range(4):
        torch.testing.assert_close(made(x[i : i + 1], c[i : i + 1])[0][0], whole[i], rtol=0, atol=1e-12)
    assert (made(x, c.flip(0))[0] - whole).abs().amax(0).min() > 1e-3


@pytest.mark.parametrize("name", ["affine", "planar", "radial", "spline"])
@pytest.mark.parametrize("context", [0, 3])
def test_a_map_begins_as_the_identity(name, context):
    made, x = maps(context=context)[name].double(), points(8, D)
    y, log_det = made(x, points(8, context) if context else None)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
    assert log_det.abs().max() < 1e-12


def test_a_chain_is_its_maps_and_the_way_back_is_shown():
    made = shaken(Chain([*maps().values(), Reversal(D), Inverse(maps()["planar"])]))
    x = points(5, D)
    undoes(made, made.inverse, x)
    tells_its_volume(made, x[:2])
    y, steps = x, []
    for layer in made:
        steps.append(y)
        y, _ = layer(y)
    for (back, _), there in zip(made.unfold(y), reversed(steps), strict=True):
        torch.testing.assert_close(back, there, rtol=0, atol=1e-10)
    empty = Chain([])
    assert torch.equal(empty.inverse(x)[0], x) and empty(x)[1].abs().max() == 0


def test_a_permutation_moves_numbers():
    made, x = Permutation(torch.tensor([2, 0, 1])), torch.tensor([[10.0, 11.0, 12.0]])
    assert made(x)[0].tolist() == [[12.0, 10.0, 11.0]]
    assert torch.equal(made.inverse(made(x)[0])[0], x) and Reversal(3)(x)[0].tolist() == [[12.0, 11.0, 10.0]]


def test_a_normalisation_counts_its_slope():
    made = shaken(Normalisation(D))
    made.norm.mean.copy_(points(D, seed=5))
    made.norm.var.copy_(points(D, seed=6).exp())
    x = points(4, D)
    undoes(made, made.inverse, x)
    tells_its_volume(made, x)
    made.train()
    y, log_det = made(3 + 2 * points(50, D))
    std, mean = torch.std_mean(y, 0, correction=0)
    torch.testing.assert_close(mean, made.bias, rtol=0, atol=1e-9)
    torch.testing.assert_close(std, made.log_scale.exp(), rtol=1e-4, atol=0)
    assert log_det.shape == (50,)


# ------------------------------------------------------------------------------------------------------ planar and radial


def test_a_planar_map_is_the_papers_formula():
    made, z = shaken(Planar(D)), points(5, D)
    u, w, b = made.numbers.start.split([D, D, 1])
    a = w @ u
    m = -1 + LEAST + (1 - LEAST) * torch.log(1 + (math.e - 1) * a.exp())
    hat = u + (m - a) * w / (w @ w)
    assert w @ hat == pytest.approx(float(m), abs=1e-12)
    h = torch.tanh(z @ w + b)
    y, log_det = made(z)
    torch.testing.assert_close(y, z + h[:, None] * hat)
    torch.testing.assert_close(log_det, torch.log(torch.abs(1 + (1 - h**2) * (w @ hat))))


@pytest.mark.parametrize("seed", range(20))
def test_random_parameters_of_any_size_stay_invertible(seed):
    made = shaken(Planar(D), size=10.0 ** (seed % 4 - 1), seed=seed)
    *_, margin = made.parts()
    assert margin > 0
    radial = shaken(Radial(D), size=10.0 ** (seed % 4 - 1), seed=seed)
    _, alpha, stretch = radial.parts()
    assert alpha > 0 and stretch > 0
    y, log_det = made(points(50, D))
    assert y.isfinite().all() and log_det.isfinite().all()


@pytest.mark.parametrize("along", [-60.0, -3.0, 0.0, 3.0, 60.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_planar_map_is_undone_however_steep(along, dtype):
    made = Planar(2).to(dtype).requires_grad_(False)
    made.numbers.start.copy_(torch.tensor([along, 0.0, 1.0, 0.5, 0.1]))
    x = points(2000, 2, scale=3).to(dtype)
    y, log_det = made(x)
    back, undone = made.inverse(y)
    again = made(back)[0]  # where the map is all but flat, many x have all but the same y
    size = y.abs().max() * torch.finfo(dtype).eps
    assert (again - y).abs().max() < 20 * (1 + abs(along)) * size
    if along > -10:
        assert (back - x).abs().max() < 1e3 * size and (undone + log_det).abs().max() < 1e3 * size


def test_a_radial_map_is_the_papers_formula():
    made, z = shaken(Radial(D)), points(5, D)
    centre, alpha, margin = (part.squeeze() for part in made.parts())
    beta = alpha * (margin - 1)
    r = (z - centre).norm(dim=1)
    h = 1 / (alpha + r)
    y, log_det = made(z)
    torch.testing.assert_close(y, z + (beta * h)[:, None] * (z - centre))
    slope = -1 / (alpha + r) ** 2
    paper = (D - 1) * torch.log(1 + beta * h) + torch.log(1 + beta * h + beta * slope * r)
    torch.testing.assert_close(log_det, paper)
    here = centre[None].clone()
    assert torch.equal(made.inverse(made(here)[0])[0], here)


# -------------------------------------------------------------------------------------------------------- autoregressive


@pytest.mark.parametrize("name", ["affine", "gate", "spline"])
def test_jacobians_are_exactly_triangular_in_the_order(name):
    made, x = shaken(maps()[name], 1.0), points(3, D)
    order = list(made.net.order)
    assert order == (list(reversed(range(D))) if name == "gate" else list(range(D)))
    seen = torch.stack([jacobian(lambda v: made(v)[0], row)[order][:, order] for row in x])
    assert torch.equal(seen, seen.tril()) and (seen.tril(-1) != 0).any(0).sum() >= 10


def test_a_network_sees_all_that_comes_before_and_the_context():
    net = shaken(MaskedMlp(5, (32, 32), 2, context=2, order=[3, 1, 4, 0, 2]), 1.0)
    x, c = points(1, 5), points(1, 2)
    seen = torch.autograd.functional.jacobian(lambda v: net(v, c)[0].abs().sum(1), x)[:, 0] != 0
    order = torch.tensor([3, 1, 4, 0, 2])
    expected = torch.ones(5, 5, dtype=torch.bool).tril(-1)
    assert torch.equal(seen[order][:, order], expected)
    assert (torch.autograd.functional.jacobian(lambda v: net(x, v)[0], c) != 0).all()


@pytest.mark.parametrize("hidden", [(), (8,)])
def test_one_number_has_nothing_before_it(hidden):
    net = shaken(MaskedMlp(1, hidden, 2), 1.0)
    assert torch.equal(net(points(1, 1)), net(points(1, 1, seed=9)))


@pytest.mark.parametrize("univariate", [Shift(), Affine(), Gate(), Spline(4, 2.0)])
def test_functions_of_one_number_rise_and_tell_their_slope(univariate):
    x, given = points(500, scale=2).requires_grad_(), points(500, univariate.numbers, seed=2, scale=2)
    y, log_slope = univariate.forward(x, given)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), rtol=0, atol=1e-9)
    back, undone = univariate.inverse(y, given)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(undone, -log_slope, rtol=0, atol=1e-8)


# --------------------------------------------------------------------------------------------------------------- splines


def knots(n, bins=6, bound=3.0, seed=0):
    spline = Spline(bins, bound)
    return spline.knots(points(n, spline.numbers, seed=seed, scale=2))


def test_a_spline_goes_through_its_knots_with_their_slopes():
    xs, ys, slopes = knots(20)
    for k in range(7):
        y, log_slope = rational_quadratic(xs[:, k], xs, ys, slopes)
        torch.testing.assert_close(y, ys[:, k], rtol=0, atol=1e-12)
        torch.testing.assert_close(log_slope, slopes[:, k].log(), rtol=0, atol=1e-9)
        torch.testing.assert_close(inverse_rational_quadratic(y, xs, ys, slopes)[0], xs[:, k], rtol=0, atol=1e-10)
    assert (xs.diff() > 0).all() and (ys.diff() > 0).all() and (slopes > 0).all()
    assert (slopes[:, [0, -1]] == 1).all() and (xs[:, [0, -1]].abs() == 3).all()


def test_a_spline_is_smooth_and_the_identity_outside():
    spline, given = Spline(6, 3.0), points(1, 17, scale=2)
    x = torch.cat([torch.linspace(-6, 6, 4001, dtype=torch.float64), torch.tensor([-3.0, 3.0]).double()])
    y, log_slope = spline.forward(x, given)
    outside = x.abs() >= 3
    assert torch.equal(y[outside], x[outside]) and log_slope[outside].abs().max() == 0
    near = torch.tensor([-3.0, 3.0], dtype=torch.float64) * (1 - 1e-12)
    assert spline.forward(near, given)[1].abs().max() < 1e-5, "slope one at the ends"
    assert (y[:4001].diff() > 0).all()


def test_a_splines_slope_is_no_other_function():
    """The control: the mean slope of a bin is not the slope within it."""
    xs, ys, slopes = knots(1)
    x = torch.linspace(-2.9, 2.9, 50, dtype=torch.float64)
    exact = slogdet(lambda v: rational_quadratic(v[:, 0], xs, ys, slopes)[0][:, None], x[:, None])
    torch.testing.assert_close(rational_quadratic(x, xs, ys, slopes)[1], exact, rtol=0, atol=1e-9)
    index = (x[:, None] >= xs[0, 1:-1]).sum(1)
    assert ((ys.diff() / xs.diff())[0, index].log() - exact).abs().max() > 0.1
