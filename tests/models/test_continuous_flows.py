"""Neural ODE and FFJORD: linear fields in closed form, solvers' orders, the adjoint's gradients and memory, densities."""

import gc
import math
import weakref
from itertools import pairwise

import pytest
import torch
from flow_laws import comes_within_a_tenth_of_a_nat
from torch import nn

from gencli import recipe
from gencli.core import Field, Likelihood, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.flow.ffjord import Ffjord
from gencli.models.flow.neural_ode import NeuralOde

PLANE = Spec(Field("points", (2,)))
IMAGES = Spec(Field("image", (1, 4, 4), vocab=17, range=(0.0, 1.0)))
NET = {"name": "ode-net", "width": 16, "layers": 2, "activation": "tanh"}
A = torch.tensor([[-0.5, 1.0], [-1.2, 0.3]], dtype=torch.float64)


class Linear(nn.Module):
    """f(x) = A x."""

    def __init__(self, a=A):
        super().__init__()
        self.a = nn.Parameter(a.clone())

    def forward(self, x, level, **cond):
        return x @ self.a.T


def made(kind=NeuralOde, spec=PLANE, seed=0, **settings):
    torch.manual_seed(seed)
    return kind.make({"net": NET, **settings}, spec).double().eval()


def linear(**settings):
    model = made(**settings)
    model.blocks[0].net = Linear()
    return model


def points(n, seed=0):
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def images(n, seed=0):
    return torch.rand(n, *IMAGES.x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("solver", ["dopri5", "bosh3", "rk4"])
@pytest.mark.parametrize("alone", [True, False], ids=["each row alone", "the batch"])
def test_a_linear_field_has_the_matrix_exponential_and_its_trace(solver, alone):
    model = linear(solver=solver, rtol=1e-9, atol=1e-9, steps=60, time=1.5)
    x = points(5)
    with torch.set_grad_enabled(not alone):
        z, log_det = model.transform(x)
    within = 1e-5 if solver == "bosh3" and not alone else 1e-6  # torchdiffeq steps past T, and back by a coarse curve
    torch.testing.assert_close(z.detach(), x @ torch.linalg.matrix_exp(1.5 * A).T, rtol=within, atol=within)
    torch.testing.assert_close(log_det.detach(), (1.5 * A.trace()).expand(5), rtol=within, atol=within)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solvers_of_fixed_steps_have_their_order(solver, order):
    x = points(5)
    exact = x @ torch.linalg.matrix_exp(A).T
    errors = []
    for steps in (4, 8, 16, 32):
        with torch.no_grad():
            errors.append(float((linear(solver=solver, steps=steps).transform(x)[0] - exact).norm()))
    slopes = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(slopes) > order - 0.2, slopes


@pytest.mark.parametrize("kind", [NeuralOde, Ffjord])
def test_there_and_back_again(kind):
    model, x = made(kind, rtol=1e-6, atol=1e-6), points(6)
    with torch.no_grad():
        z, _ = model.forward_flow(x)
        assert (model.inverse(z) - x).abs().max() < 1e-5, "ten times the tolerance"
        assert (z - x).abs().max() > 0.1, "and it went somewhere"


def test_in_evaluation_a_fixed_solver_may_take_more_steps_than_in_training():
    """The round trip of twice the steps, and the steps themselves: those in training stay."""

    def misses(refine):
        model = made(seed=3, solver="rk4", steps=2, refine=refine)
        x = 2 * points(20)
        with torch.no_grad():
            z, _ = model.transform(x)
            return (list(model.unfold(z))[-1] - x).abs().max(), z, model.train().transform(x)[0]

    (coarse, z, one), (fine, finer, other) = misses(1), misses(4)
    assert fine < coarse / 20 and (z - finer).abs().max() > 1e-6
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    torch.testing.assert_close(one, z, rtol=0, atol=0)


def test_there_and_back_again_through_scales_of_an_image():
    model, x = made(Ffjord, IMAGES, blocks=1, scales=2, rtol=1e-6, atol=1e-6), images(3)
    with torch.no_grad():
        z, _ = model.forward_flow(x)
        *on_the_way, last = model.stages(z)
    assert z.shape == x.shape and (last - x).abs().max() < 1e-5
    assert all(state.shape == x.shape for state in on_the_way) and len(on_the_way) > 8


# ------------------------------------------------------------------------------------------------------------- log-determinants


@pytest.mark.parametrize(
    ("spec", "scales", "x"), [(PLANE, 1, points(2)), (IMAGES, 2, images(1))], ids=["points", "images"]
)
def test_the_volume_is_that_of_the_jacobian(spec, scales, x):
    model = made(spec=spec, scales=scales, solver="rk4", steps=4, gradient="direct")
    _, log_det = model.forward_flow(x)
    for i in range(len(x)):
        jacobian = torch.autograd.functional.jacobian(lambda row: model.forward_flow(row[None])[0][0], x[i])
        size = x[i].numel()
        found = torch.linalg.slogdet(jacobian.reshape(size, size)).logabsdet
        torch.testing.assert_close(log_det[i].detach(), found, rtol=1e-4, atol=1e-4)


def test_probes_estimate_the_exact_log_likelihood():
    exact, by_probes = (made(Ffjord, divergence=kind) for kind in ("exact", "hutchinson"))
    x = points(4)
    truth = exact.log_prob(x, Rng.batch("p", total=4))
    drawn = torch.stack([by_probes.log_prob(x, Rng.batch("p", i, total=4)) for i in range(60)])
    error = drawn.std(0) / 60**0.5
    assert ((drawn.mean(0) - truth).abs() < 3 * error + 1e-6).all() and (error > 0).all()
    many = by_probes.log_prob(x, Rng.batch("q", total=4), samples=200)
    assert (many - truth).abs().max() < (drawn - truth).abs().max()
    assert "200 Hutchinson probes" in by_probes.estimate(200) and "exact trace" in exact.estimate(1)


@pytest.mark.parametrize("kind", [NeuralOde, Ffjord])
def test_a_density_of_the_plane_sums_to_one(kind):
    model = made(kind, divergence="exact")
    side = torch.linspace(-7, 7, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    density = model.log_prob(grid, Rng.batch("g", total=len(grid))).exp()
    assert float(density.sum() * (side[1] - side[0]) ** 2) == pytest.approx(1, abs=0.02)


def test_a_row_does_not_depend_on_its_batch_mates_in_evaluation_and_may_in_training():
    model, x = made(Ffjord, rtol=1e-3, atol=1e-3), points(8) * torch.arange(1, 9)[:, None]
    rng = Rng.rows(range(8))
    assert torch.allclose(model.log_prob(x, rng)[:2], model.log_prob(x[:2], Rng.rows(range(2))), rtol=1e-12)
    assert model.couples and not made(Ffjord, solver="rk4").couples
    together, alone = model.transform(x)[0][:2], model.transform(x[:2])[0]
    assert not torch.allclose(together, alone, rtol=1e-9)


# ------------------------------------------------------------------------------------------------------------------ gradients


def gradients(gradient, steps=8, **settings):
    model = made(Ffjord, gradient=gradient, steps=steps, **settings).train()
    losses = model({"x": points(8)}, Turn("main", 0, 10, Rng.batch("g", total=8)))
    losses["loss"].backward()
    return {name: p.grad for name, p in model.named_parameters()}, losses


@pytest.mark.parametrize("learn_time", [True, False])
def test_the_adjoints_gradients_are_those_of_back_propagation(learn_time):
    settings = {"solver": "dopri5", "rtol": 1e-7, "atol": 1e-7, "learn_time": learn_time}
    direct, _ = gradients("direct", **settings)
    adjoint, losses = gradients("adjoint", **settings)
    assert set(direct) == set(adjoint) and ("net.first.0.root_time" in direct) == learn_time
    for name, value in direct.items():
        assert (value - adjoint[name]).norm() <= 1e-4 * value.norm().clamp(min=1e-3), name
    assert float(losses["evaluations"]) > 10


class Kept:
    """A tensor that a graph keeps for its backward pass, for as long as the graph lives."""

    def __init__(self, tensor):
        self.tensor = tensor


def kept(gradient, steps):
    """Bytes that are kept for the backward pass once the forward pass is over, each storage once."""
    alive = weakref.WeakSet()

    def pack(tensor):
        alive.add(holder := Kept(tensor))
        return holder

    model = made(Ffjord, gradient=gradient, solver="rk4", steps=steps).train()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        losses = model({"x": points(64)}, Turn("main", 0, 10, Rng.batch("g", total=64)))
    gc.collect()
    assert losses["loss"].requires_grad
    storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in alive}
    return sum(storages.values())


def test_the_adjoint_keeps_as_much_for_two_hundred_steps_as_for_twenty():
    short, long = kept("adjoint", 20), kept("adjoint", 200)
    assert long < 1.1 * short
    assert kept("direct", 40) > 1.7 * kept("direct", 20), "what is kept without it grows with the steps"


# -------------------------------------------------------------------------------------------------- recipes and what is refused


@pytest.mark.parametrize(
    ("name", "shape", "count"), [("ffjord-mnist", (1, 28, 28), 800_646), ("ffjord-cifar10", (3, 32, 32), 1_358_882)]
)
def test_the_paper_recipes_have_the_released_parameter_counts(name, shape, count):
    values = {key: value for key, value in recipe.load(name)["model"].items() if key != "name"}
    with torch.device("meta"):
        model = Ffjord.make(values, Spec(Field("image", shape, vocab=256, range=(0.0, 1.0))))
    assert sum(p.numel() for p in model.parameters()) == count
    assert {one.net.config.width for one in model.blocks} == {64} and model.config.solver == "dopri5"


def test_a_label_moves_the_density_and_the_samples():
    spec = Spec(PLANE.x, {"label": Field("label", (), vocab=3)})
    model = made(spec=spec, classes=True)
    with torch.no_grad():
        model.blocks[0].net.label.weight.normal_()
    x, labels = points(1).expand(3, -1), torch.arange(3)
    assert len(model.log_prob(x, Rng.rows(range(3)), label=labels).unique()) == 3
    assert len(model.decode(x, label=labels)[:, 0].unique()) == 3
    assert isinstance(model, Likelihood)


def test_scales_need_images_that_can_be_halved():
    with pytest.raises(GencliError, match="2 scales need images"):
        made(scales=2)
    with pytest.raises(GencliError, match="image size 4×4 is not divisible by the network's stride 8"):
        made(spec=IMAGES, scales=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["neural-ode", "ffjord-toy2d"])
def test_eight_gaussians_are_within_a_tenth_of_a_nat_of_their_density(name):
    comes_within_a_tenth_of_a_nat(name)
