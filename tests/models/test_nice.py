"""NICE: couplings that keep the volume, zuko with the same weights, the logistic prior, the authors' networks."""

import math
import tomllib
from importlib import resources

import pytest
import torch
from flow_laws import points, shaken, slogdet

from gencli.config import parse
from gencli.core import Field, Rng, Spec
from gencli.models.flow.nice import Nice

MLP = {"name": "mlp", "width": 16, "layers": 2, "activation": "relu"}
IMAGES = Spec(Field("image", (1, 4, 4), vocab=17, range=(0.0, 1.0)))


def nice(dim=5, **settings):
    torch.manual_seed(0)
    return Nice.make({"net": MLP, **settings}, Spec(Field("points", (dim,))))


def test_the_volume_is_that_of_the_scaling_alone():
    model, x = shaken(nice(), 0.2), points(6, 5)
    *_, scaling = model.net
    exact = slogdet(lambda v: model.forward_flow(v)[0], x)
    torch.testing.assert_close(exact, scaling.log_scale.sum().expand(6), rtol=0, atol=1e-9)
    scaling.log_scale.zero_()
    z, log_det = model.forward_flow(x)
    assert torch.equal(log_det, torch.zeros(6).double()) and (z - x).abs().max() > 0.1
    assert slogdet(lambda v: model.forward_flow(v)[0], x).abs().max() < 1e-9
    torch.testing.assert_close(model.inverse(z), x, rtol=0, atol=1e-9)


def test_couplings_are_zukos():
    zuko = pytest.importorskip("zuko")
    torch.manual_seed(1)

    def additive(shift):
        return zuko.transforms.MonotonicAffineTransform(shift, torch.zeros_like(shift))

    theirs = zuko.flows.NICE(5, transforms=4, univariate=additive, shapes=[()], hidden_features=(16, 16))
    theirs, model = theirs.double().requires_grad_(False), nice().double().requires_grad_(False)
    *couplings, _ = model.net
    for layer, other in zip(couplings, theirs.transform.transforms, strict=True):
        assert layer.stays.tolist() == torch.arange(5)[other.mask].tolist()
        for here, there in zip(layer.net.body[::2], list(other.hyper)[::2], strict=True):
            here.load_state_dict(there.state_dict())
    x = points(30, 5)
    z, log_det = model.forward_flow(x)
    torch.testing.assert_close(z, theirs().transform(x), rtol=0, atol=1e-12)
    torch.testing.assert_close(model.decode(z), x, rtol=0, atol=1e-12)
    assert (z - x).abs().max() > 0.05 and not log_det.any()


def test_data_are_taken_as_they_are():
    model = shaken(Nice.make({"net": MLP, "couplings": 2}, IMAGES), 0.1)
    x = points(3, 1, 4, 4).sigmoid()
    z, _ = model.forward_flow(x)
    torch.testing.assert_close(z.view(3, 16), model.net(x.view(3, 16))[0])
    torch.testing.assert_close(model.decode(z), x, rtol=0, atol=1e-10)


def test_scales_begin_as_wide_as_the_latents():
    model, x = nice(), points(64, 5).float() * torch.tensor([0.01, 0.1, 1.0, 3.0, 10.0])
    model.initialise(iter([{"x": x}]), 64, Rng.rows([0]))
    z, log_det = model.forward_flow(x)
    torch.testing.assert_close(z.square().mean(0).sqrt(), torch.full((5,), math.pi / math.sqrt(3)))
    assert not torch.equal(log_det, torch.zeros(64))


@pytest.mark.parametrize("noise", ["logistic", "normal"])
def test_latents_have_their_distribution(noise):
    model = nice(noise=noise).double()
    z = model.prior(4000, Rng.rows(range(4000))).flatten()
    scale = math.pi / math.sqrt(3) if noise == "logistic" else 1.0
    assert abs(float(z.mean())) < 0.05 * scale and float(z.std()) == pytest.approx(scale, rel=0.02)
    axis = torch.linspace(-40, 40, 20_001, dtype=torch.float64)
    density = model.log_noise(axis[:, None]).exp()
    assert float(density.sum() * (axis[1] - axis[0])) == pytest.approx(1, abs=1e-9)
    if noise == "logistic":
        torch.testing.assert_close(density, 1 / (2 + axis.exp() + (-axis).exp()))


def test_the_mnist_recipe_has_the_authors_parameters():
    table = tomllib.loads((resources.files("gencli") / "recipes" / "nice-mnist.toml").read_text())["model"]
    table.pop("name")
    with torch.device("meta"):
        model = Nice(parse(Nice.Config, table), Spec(Field("image", (1, 28, 28), vocab=256, range=(0.0, 1.0))))
    assert sum(p.numel() for p in model.parameters()) == 19_158_352
