"""NSF: zuko with the same weights and splines, and points in the plane."""

import math

import pytest
import torch
from flow_laws import comes_within_a_tenth_of_a_nat, gaussian_loses, lost, plane, points, shaken

from gencli.core import Field, Rng, Spec
from gencli.models.flow.nsf import Nsf
from gencli.nn.spline import LEAST, Spline, inverse_rational_quadratic, rational_quadratic

BINS, BOUND = 6, 3.0


def nsf(dim=5, **settings):
    torch.manual_seed(0)
    return Nsf.make({"layers": 3, "bins": BINS, "bound": BOUND, **settings}, Spec(Field("points", (dim,))))


def in_zukos_numbers(wide, high, steep):
    """zuko's spline with the knots that these parameters give ours."""
    zuko = pytest.importorskip("zuko")
    made = zuko.transforms.MonotonicRQSTransform(wide, high, steep, bound=BOUND)
    given = torch.cat([wide, high, steep], -1)
    made.horizontal, made.vertical, made.derivatives = Spline(BINS, BOUND).knots(given)
    return made


def test_a_spline_is_zukos_between_the_same_knots():
    zuko = pytest.importorskip("zuko")
    wide, high, steep = (points(400, n, seed=n, scale=2) for n in (BINS, BINS + 1, BINS - 1))
    theirs = zuko.transforms.MonotonicRQSTransform(wide, high[:, :BINS], steep, bound=BOUND)
    knots = theirs.horizontal, theirs.vertical, theirs.derivatives
    x = points(400).clamp(-2.9, 2.9)
    y, log_slope = rational_quadratic(x, *knots)
    other, ladj = theirs.call_and_ladj(x)
    torch.testing.assert_close(y, other, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_slope, ladj, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse_rational_quadratic(y, *knots)[0], theirs.inv(y), rtol=0, atol=1e-10)


@pytest.mark.parametrize("form", ["coupling", "autoregressive"])
def test_densities_and_samples_are_zukos(form):
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(1)
    shapes = {"univariate": in_zukos_numbers, "shapes": [(BINS,), (BINS,), (BINS - 1,)], "hidden_features": (16, 16)}
    if form == "coupling":
        theirs = zuko.flows.NICE(5, transforms=3, **shapes)
        model = nsf(net={"name": "mlp", "width": 16, "layers": 2, "activation": "relu"})
    else:
        theirs = zuko.flows.MAF(5, transforms=3, **shapes)
        model = nsf(form=form, hidden=[16, 16])
    theirs, model = theirs.double().requires_grad_(False), model.double().requires_grad_(False)
    for layer, other in zip(model.net, theirs.transform.transforms, strict=True):
        linears = [part for part in other.hyper if hasattr(part, "weight")]
        mine = [part for part in layer.net.body if hasattr(part, "weight")] if form == "coupling" else None
        if mine is not None:
            assert layer.stays.tolist() == torch.arange(5)[other.mask].tolist()
        for here, there in zip(mine or [*layer.net.layers, layer.net.last], linears, strict=True):
            here.load_state_dict({key: value for key, value in there.state_dict().items() if key != "mask"})
    x, z = points(50, 5, scale=1.5), points(50, 5, seed=7)
    torch.testing.assert_close(model.log_prob(x, Rng.rows([0])), theirs().log_prob(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(model.decode(z), theirs().transform.inv(z), rtol=0, atol=1e-8)
    assert (model.forward_flow(x)[0] - x).abs().max() > 0.05


def test_parameters_of_zero_are_the_identity_and_shares_have_a_least():
    spline = Spline(BINS, BOUND)
    x = torch.linspace(-4, 4, 101, dtype=torch.float64)
    torch.testing.assert_close(spline.forward(x, torch.zeros(101, spline.numbers).double())[0], x)
    xs, _, slopes = spline.knots(points(1, spline.numbers, scale=100))
    assert xs.diff().min() >= 2 * BOUND * LEAST * (1 - 1e-9) and slopes.min() >= LEAST
    assert math.isclose(float(xs[0, -1] - xs[0, 0]), 2 * BOUND)


def test_linear_layers_stand_before_the_splines():
    model = shaken(nsf(linear=True), 0.1)
    kinds = [type(layer).__name__ for layer in model.net]
    assert kinds == ["LU", "Coupling"] * 3


def test_the_checkerboard_recipe_has_the_authors_networks():
    model = nsf(2, layers=2, bins=64, bound=5.0)
    one = (32 + 32) + 4 * (32 * 32 + 32) + (32 * 191 + 191)
    assert sum(p.numel() for p in model.parameters()) == 2 * one


def test_points_are_learned_far_better_than_by_a_gaussian():
    model, test = plane("nsf", {"layers": 3, "bins": 8, "bound": 3.0}, 120, 1e-2)
    assert lost(model, test) < 0.5 * gaussian_loses(test)


@pytest.mark.slow
def test_points_are_learned_to_a_tenth_of_a_nat():
    comes_within_a_tenth_of_a_nat("nsf")
