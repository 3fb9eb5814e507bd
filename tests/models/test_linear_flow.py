"""Linear flows: dense determinants and inverses, a 1×1 convolution, the covariance of Gaussian data."""

import pytest
import torch
from flow_laws import keeps_every_law, points, shaken

from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.flow.linear_flow import LinearFlow
from gencli.nn.linear_maps import LU, QR, PerPixel
from gencli.nn.squeeze import squeeze


def linear(*shape, **settings):
    torch.manual_seed(0)
    kind = "points" if len(shape) == 1 else "image"
    return LinearFlow.make(settings, Spec(Field(kind, shape)))


@pytest.mark.parametrize("kind", [LU, QR])
def test_a_factored_map_is_its_dense_matrix(kind):
    torch.manual_seed(0)
    fresh = kind(7).double()
    identity = fresh.weight() @ fresh.weight().T
    torch.testing.assert_close(identity, torch.eye(7).double(), rtol=0, atol=1e-6)
    made, x = shaken(kind(7), 0.3), points(5, 7)
    weight = made.weight()
    y, log_det = made(x)
    torch.testing.assert_close(y, x @ weight.T + made.bias)
    exact = torch.linalg.slogdet(weight).logabsdet
    torch.testing.assert_close(log_det, exact.expand(5), rtol=0, atol=1e-10)
    torch.testing.assert_close(made.inverse(y)[0], x, rtol=0, atol=1e-10)
    torch.testing.assert_close(made.inverse(y)[0], torch.linalg.solve(weight, (y - made.bias).T).T)
    if kind is QR:
        torch.testing.assert_close(made.rotation() @ made.rotation().T, torch.eye(7).double(), rtol=0, atol=1e-12)
    else:
        assert sorted(made.order.tolist()) == list(range(7)) and (exact - made.log_scale.sum()).abs() < 1e-10


def test_at_every_pixel_it_is_a_1x1_convolution():
    torch.manual_seed(0)
    lu = shaken(LU(4), 0.3)
    x = points(3, 4, 2, 5)
    y, log_det = PerPixel(lu, 4)(x.flatten(1))
    conv = torch.nn.functional.conv2d(x, lu.weight()[..., None, None], lu.bias)
    torch.testing.assert_close(y.view_as(x), conv)
    exact = 2 * 5 * torch.linalg.slogdet(lu.weight()).logabsdet
    torch.testing.assert_close(log_det, exact.expand(3), rtol=0, atol=1e-9)


def test_pixels_are_folded_into_channels_and_back():
    model, x = shaken(linear(1, 4, 4, pixels=True), 0.2), points(3, 1, 4, 4)
    keeps_every_law(linear(1, 4, 4, pixels=True), x)
    inner = model.net.layers[1]
    z = squeeze(model.forward_flow(x)[0], "rows").flatten(1)
    torch.testing.assert_close(z, inner(squeeze(x, "rows").flatten(1))[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["lu", "qr"])
def test_fitted_to_a_gaussian_it_has_its_covariance(form):
    chol = torch.tril(points(4, 4, seed=3)) + 1.5 * torch.eye(4)
    x = points(2000, 4) @ chol.T + torch.arange(4.0)
    model = linear(4, form=form).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = model.loss({"x": x}, Turn("main", 0, 1, Rng.batch("fit", total=len(x))))["loss"]
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        weight = model.net.layers[0].weight()
        inverse = torch.linalg.inv(weight)
        fitted, cov = inverse @ inverse.T, x.T.cov(correction=0)
        assert (fitted - cov).norm() < 0.02 * cov.norm()
        assert (torch.diag(cov.diagonal()) - cov).norm() > 0.2 * cov.norm(), "independent numbers would miss it"
        torch.testing.assert_close(model.decode(torch.zeros(1, 4).double())[0], x.mean(0), rtol=0, atol=0.02)


def test_pixels_of_points_and_odd_sides_are_refused():
    with pytest.raises(GencliError, match="have none"):
        linear(3, pixels=True)
    with pytest.raises(GencliError, match="not divisible"):
        linear(1, 6, 6, pixels=True, squeezes=2)
