"""What all flows of rows keep: exact inverses and densities, classes, and fitting an energy by reverse KL."""

import math

import pytest
import torch
from flow_laws import descend, keeps_every_law, points, shaken

from gencli import registry
from gencli.config import parse
from gencli.core import Field, Rng, Spec, Turn
from gencli.data.energy import Energy, draw
from gencli.errors import GencliError
from gencli.nn.energies import ENERGIES, REACH
from gencli.training.session import resolve

PLANE = Spec(Field("points", (2,)))
LABELLED = Spec(Field("points", (3,)), {"label": Field("label", (), vocab=4)})
IMAGES = Spec(Field("image", (1, 4, 4), vocab=17, range=(0.0, 1.0)))
MLP = {"name": "mlp", "width": 16, "activation": "tanh"}
HIDDEN = {"hidden": [16], "activation": "tanh"}
FLOWS = {
    "planar": {"layers": 4},
    "radial": {"layers": 4},
    "maf": {"layers": 3, **HIDDEN},
    "iaf": {"layers": 3, **HIDDEN},
    "nice": {"net": MLP},
    "nsf": {"layers": 2, "bins": 4, "linear": True, "net": {"name": "residual-mlp", "width": 8}},
    "linear-flow": {"form": "qr"},
}
FORMS = [
    *FLOWS.items(),
    ("maf", {"layers": 2, "batch_norm": True, **HIDDEN}),
    ("nice", {"noise": "normal", "couplings": 3, "net": MLP}),
    ("nsf", {"layers": 2, "bins": 4, "form": "autoregressive", "hidden": [16]}),
    ("linear-flow", {"form": "lu"}),
    ("linear-flow", {"form": "permutation"}),
]
TOWARDS = [name for name in FLOWS if name != "nice"]


def flow(name, spec=PLANE, **settings):
    torch.manual_seed(0)
    return registry.load("models", name).make({**FLOWS[name], **settings}, spec)


@pytest.mark.parametrize(("name", "settings"), FORMS)
@pytest.mark.parametrize("spec", [PLANE, IMAGES], ids=["plane", "images"])
def test_every_flow_keeps_the_laws(name, settings, spec):
    x = points(5, *spec.x.shape)
    keeps_every_law(flow(name, spec, **settings), x.sigmoid() if spec.x.range else x)


@pytest.mark.parametrize("name", [name for name in FLOWS if name != "linear-flow"])
def test_with_classes_it_is_a_density_of_each_class(name):
    x, label = points(4, 3), torch.tensor([0, 1, 2, 3])
    model = flow(name, LABELLED, classes=True)
    keeps_every_law(model, x, label=label)
    one, other = (model.log_prob(x, Rng.rows(range(4)), label=torch.full((4,), k)) for k in (0, 3))
    assert (one - other).abs().min() > 1e-4, "the label changes nothing"
    assert flow(name, LABELLED).spec.cond == {}


def test_whole_numbers_and_classes_without_labels_are_refused():
    with pytest.raises(GencliError, match="whole numbers"):
        flow("maf", Spec(Field("image", (1, 4, 4), vocab=17)))
    with pytest.raises(GencliError, match="the data have no labels"):
        flow("maf", classes=True)
    for name in ("nice", "nsf"):
        with pytest.raises(GencliError, match="two or more numbers, got 1"):
            flow(name, Spec(Field("points", (1,))))


# ---------------------------------------------------------------------------------------------------------------- energies


@pytest.mark.parametrize("name", ENERGIES)
def test_the_mass_of_an_energy_is_its_integral(name):
    axis = torch.linspace(-REACH, REACH, 1201, dtype=torch.float64)
    total = (-ENERGIES[name].at(torch.cartesian_prod(axis, axis))).exp().sum() * (axis[1] - axis[0]) ** 2
    assert float(total.log()) == pytest.approx(ENERGIES[name].log_mass, abs=1e-6)


def test_energies_are_those_of_the_papers_table():
    """In numbers worked out by hand, at places where every term counts."""
    z = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    wave, r = 1.0, math.sqrt(1.25)
    bells = math.exp(-0.5 * (1 / 0.6) ** 2) + math.exp(-0.5 * (3 / 0.6) ** 2)
    first = 0.5 * ((r - 2) / 0.4) ** 2 - math.log(bells)
    second = 0.5 * ((0.5 - wave) / 0.4) ** 2
    third = -math.log(math.exp(-0.5 * (-0.5 / 0.35) ** 2) + math.exp(-0.5 * ((-0.5 + 3) / 0.35) ** 2))
    fourth = -math.log(math.exp(-0.5 * (-0.5 / 0.4) ** 2) + math.exp(-0.5 * ((-0.5 + 1.5) / 0.35) ** 2))
    for name, value in zip(("u1", "u2", "u3", "u4"), (first, second, third, fourth), strict=True):
        assert float(ENERGIES[name].at(z)) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("name", ["u1", "u4", "two"])
def test_draws_have_the_energys_moments(name):
    axis = torch.linspace(-REACH, REACH, 701, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    weight = ENERGIES[name].log_prob(grid).exp() * (axis[1] - axis[0]) ** 2
    mean = weight @ grid
    cov = (grid - mean).T @ ((grid - mean) * weight[:, None])
    drawn = draw(name, Rng.batch("t", total=40_000))
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.T.cov(), cov, rtol=0.05, atol=0.05)


# -------------------------------------------------------------------------------------------------------------- reverse KL


@pytest.mark.parametrize("name", TOWARDS)
def test_towards_an_energy_the_loss_is_the_divergence(name):
    """Against the same mean with densities by `log_prob`, and against a grid."""
    model = shaken(flow(name, target="energy-u1"), 0.1)
    n = 20_000
    losses = model.loss({"x": torch.zeros(n, 2)}, Turn("main", 0, 1, Rng.batch("t", total=n)))
    z = Rng.batch("t", total=n).at("noise").normal((n, 2)).double()
    x = model.decode(z)
    density = model.log_prob(x, Rng.rows([0]))
    torch.testing.assert_close(losses["each"], density - ENERGIES["u1"].log_prob(x), rtol=0, atol=1e-6)
    axis = torch.linspace(-9, 9, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis)
    log_q = model.log_prob(grid, Rng.rows([0]))
    exact = (log_q.exp() * (log_q - ENERGIES["u1"].log_prob(grid))).sum() * (axis[1] - axis[0]) ** 2
    error = float(losses["each"].std()) / math.sqrt(n)
    assert abs(float(losses["loss"] - exact)) < 5 * error + 0.01 * float(exact)


@pytest.mark.parametrize("name", TOWARDS)
def test_towards_an_energy_every_number_is_learned(name):
    model = flow(name, target="energy-u2").double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.loss({"x": torch.zeros(64, 2)}, Turn("main", 0, 1, Rng.batch("t", total=64)))["loss"].backward()
    dead = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead


def test_a_target_brings_its_own_data():
    table = resolve({"model": {"name": "planar", "target": "energy-u3"}, "data": {"name": "toy2d", "size": 5}})
    assert table["data"] == {"name": "energy", "energy": "u3", "size": 5, "seed": 0}
    assert resolve(table)["data"] == table["data"], "a run's own table is left as it is"
    assert resolve({"model": {"name": "planar"}, "data": {"name": "toy2d"}})["data"]["name"] == "toy2d"
    both = {"model": {"name": "planar", "target": "energy-u3"}, "data": {"name": "energy", "energy": "u2"}}
    with pytest.raises(GencliError, match="energy-u3 and the data of energy u2"):
        resolve(both)
    assert Energy(parse(Energy.Config, {"size": 7})).split("test").x.shape == (7, 2)


def test_a_target_of_other_data_is_refused():
    with pytest.raises(GencliError, match="density of the plane, the data are image"):
        flow("planar", IMAGES, target="energy-u2")
    with pytest.raises(GencliError, match="energy-u2 has no classes"):
        labelled = Spec(Field("points", (2,)), {"label": Field("label", (), vocab=4)})
        flow("planar", labelled, classes=True, target="energy-u2")


@torch.no_grad()
def gaussian_of(model):
    """Mean and covariance of a linear flow."""
    mean = model.decode(torch.zeros(1, 2).double())[0]
    columns = model.decode(torch.eye(2).double()) - mean
    return mean, columns.T @ columns


def test_one_gaussian_covers_two_modes_by_forward_kl_and_keeps_to_one_by_reverse_kl():
    drawn = draw("two", Rng.batch("data", total=20_000))
    cover = descend(flow("linear-flow").double(), lambda step: drawn, 150, 0.1, 20_000)
    keep = flow("linear-flow", target="energy-two").double()
    with torch.no_grad():
        keep.net.layers[0].bias[0] += 0.3  # the middle of the two modes is a saddle
    keep = descend(keep, lambda step: torch.zeros(300, 2), 200, 0.1, 300)

    mean, cov = gaussian_of(cover)
    torch.testing.assert_close(mean, torch.zeros(2).double(), rtol=0, atol=0.02 * math.sqrt(4.25))
    torch.testing.assert_close(cov, torch.diag(torch.tensor([4.25, 0.25])).double(), rtol=0.02, atol=0.02)
    torch.testing.assert_close(cov, drawn.T.cov(correction=0), rtol=1e-3, atol=1e-3)
    one, spread = gaussian_of(keep)
    away = (one.abs() - torch.tensor([2.0, 0.0]).double()).norm()
    assert away < 0.1 and (spread - 0.25 * torch.eye(2)).abs().max() < 0.03
    assert mean.norm() < 0.1, "the forward fit is at neither"
