"""MAF: zuko with the same weights, the triangle of each layer, a Gaussian's exact likelihood, points in the plane."""

import math
import tomllib
from importlib import resources

import pytest
import torch
from flow_laws import comes_within_a_tenth_of_a_nat, gaussian_loses, jacobian, lost, plane, points, shaken

from gencli.config import parse
from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.flow.maf import Maf

DIGITS = Spec(Field("image", (1, 8, 8), vocab=17, range=(0.0, 1.0)))


def maf(dim=5, **settings):
    torch.manual_seed(0)
    return Maf.make({"layers": 3, "hidden": [16, 16], **settings}, Spec(Field("points", (dim,))))


def copy_masked(zuko_layers, net):
    """The masked weights of a network of zuko; the masks must be the same."""
    mine = [*net.layers, net.last]
    theirs = [layer for layer in zuko_layers if hasattr(layer, "mask")]
    for here, there in zip(mine, theirs, strict=True):
        assert torch.equal(here.mask, there.mask.bool())
        here.weight.copy_(there.weight)
        here.bias.copy_(there.bias)


def in_zukos_numbers(mean, log_scale):
    """zuko's y = e^a x + b, whose a is softly bounded, as (x − μ) e^−α."""
    zuko = pytest.importorskip("zuko")
    raw = -log_scale / (1 - log_scale.abs() / -math.log(1e-3))
    return zuko.transforms.MonotonicAffineTransform(-mean * (-log_scale).exp(), raw)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_densities_and_samples_are_zukos(activation):
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(1)
    kind = torch.nn.ReLU if activation == "relu" else torch.nn.Tanh
    theirs = zuko.flows.MAF(5, transforms=3, hidden_features=(16, 16), activation=kind, univariate=in_zukos_numbers)
    theirs = theirs.double().requires_grad_(False)
    model = maf(activation=activation).double().requires_grad_(False)
    for layer, other in zip(model.net, theirs.transform.transforms, strict=True):
        copy_masked(other.hyper, layer.net)
    x, z = points(50, 5), points(50, 5, seed=7)
    torch.testing.assert_close(model.log_prob(x, Rng.rows([0])), theirs().log_prob(x), rtol=0, atol=1e-9)
    torch.testing.assert_close(model.decode(z), theirs().transform.inv(z), rtol=0, atol=1e-8)
    assert (model.log_prob(x, Rng.rows([0])) - maf().double().log_prob(x, Rng.rows([0]))).abs().min() > 1e-3


def test_each_layers_jacobian_is_a_triangle_in_its_order():
    model, x = shaken(maf(), 0.5), points(2, 5)
    for i, layer in enumerate(model.net):
        seen = jacobian(lambda v, layer=layer: layer(v)[0], x[0])
        seen = seen if i % 2 == 0 else seen.flip(0, 1)
        assert torch.equal(seen, seen.tril()) and seen.tril(-1).abs().sum() > 0.1


def test_round_trips_of_images_in_float32():
    torch.manual_seed(0)
    model = shaken(Maf.make({"layers": 3, "hidden": [64]}, DIGITS), 0.02).float()
    x = points(8, 1, 8, 8).sigmoid().float()
    assert (model.decode(model.forward_flow(x)[0]) - x).abs().max() < 1e-4


def test_one_linear_layer_is_a_gaussian_fitted_to_its_exact_likelihood():
    chol = torch.tril(points(5, 5, seed=3)) + 1.5 * torch.eye(5)
    x = points(3000, 5) @ chol.T + torch.arange(5.0)
    model = maf(layers=1, hidden=[]).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=100, line_search_fn="strong_wolfe")
    turn = Turn("main", 0, 1, Rng.batch("fit", total=len(x)))

    def closure():
        optimizer.zero_grad()
        loss = model.loss({"x": x}, turn)["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    nats = model.log_prob(x, Rng.rows([0])).mean().detach()
    exact = torch.distributions.MultivariateNormal(x.mean(0), x.T.cov(correction=0)).log_prob(x).mean()
    alone = torch.distributions.Normal(x.mean(0), x.std(0)).log_prob(x).sum(1).mean()
    assert 0 <= float(nats - exact) + 1e-6 < 0.01
    assert float(exact - alone) > 0.1, "numbers that know nothing of each other"


def test_batch_normalisation_couples_items_and_settles():
    model = maf(batch_norm=True)
    assert model.couples and not maf().couples
    x, turn = 3 + 2 * points(64, 5).float(), Turn("main", 0, 1, Rng.batch("t", total=64))
    first = model.loss({"x": x}, turn)["loss"]
    model.after_step(turn)
    z = model.eval().forward_flow(x)[0]
    assert z.mean(0).abs().max() < 0.05 and (z.std(0) - 1).abs().max() < 0.05
    nats = model.log_prob(x, Rng.rows([0])).mean()
    assert float(first + nats) == pytest.approx(0, abs=0.05)


def test_the_mnist_recipe_has_the_papers_networks():
    table = tomllib.loads((resources.files("gencli") / "recipes" / "maf-mnist.toml").read_text())["model"]
    table.pop("name")
    with torch.device("meta"):
        model = Maf(parse(Maf.Config, table), Spec(Field("image", (1, 28, 28), vocab=256, range=(0.0, 1.0))))
    one = 784 * 1024 + 1024 + 1024 * 1024 + 1024 + 2 * (1024 * 784 + 784)
    assert sum(p.numel() for p in model.parameters()) == 5 * (one + 2 * 784)


def test_a_layer_without_units_is_refused():
    with pytest.raises(GencliError, match=r"hidden layers are \(8, 0\)"):
        maf(hidden=[8, 0])


def test_points_are_learned_better_than_by_a_gaussian():
    model, test = plane("maf", {"layers": 4, "hidden": [32, 32]}, 150, 1e-2)
    assert lost(model, test) < 0.85 * gaussian_loses(test)


@pytest.mark.slow
def test_points_are_learned_to_a_tenth_of_a_nat():
    comes_within_a_tenth_of_a_nat("maf-toy2d")
