"""Densities of the plane: a known one on its grid, its integral, classes, and what has none."""

import math

import pytest
import torch
from flow_laws import eight_gaussians
from tiny import smoke, table, trained

from gencli.bundle import Run
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.evaluation import density
from gencli.report.kinds import points as pictures

SQUARE = (-5.0, 5.0, -4.0, 6.0)


def linear(**settings):
    """An untrained run of points with a full covariance that is known."""
    torch.manual_seed(0)
    spec = Spec(Field("points", (2,)), {"label": Field("label", (), vocab=3)})
    run = Run.build({"model": {"name": "linear-flow", **settings}}, spec)
    (layer,) = run.model.net.layers
    with torch.no_grad():
        layer.log_scale.copy_(torch.tensor([0.5, 0.1]))
        layer.bias.copy_(torch.tensor([0.3, -1.0]))
    run.model.eval().requires_grad_(False)
    weight = layer.weight().double()
    mean = -torch.linalg.solve(weight, layer.bias.double())
    return run, torch.distributions.MultivariateNormal(mean, precision_matrix=weight.T @ weight)


def test_a_gaussian_is_itself_on_the_grid_and_sums_to_one():
    run, truth = linear()
    made = density.of_plane(run, SQUARE, side=200)
    assert made.integral == pytest.approx(1, abs=1e-3)
    peak = divmod(int(made.p.argmax()), 200)
    x, y = -5 + (peak[1] + 0.5) * 0.05, 6 - (peak[0] + 0.5) * 0.05
    assert math.dist((x, y), truth.mean.tolist()) < 0.06, "rows from the top, columns from the left"
    torch.testing.assert_close(made.p.flatten(), truth.log_prob(density.grid(SQUARE, 200)).exp(), rtol=1e-3, atol=1e-6)
    half = density.of_plane(run, (-5.0, float(truth.mean[0]), -9.0, 9.0), side=300)
    assert half.integral == pytest.approx(0.5, abs=0.02), "what lies outside is missing"


def test_a_log_determinant_that_is_wrong_shows_in_the_integral():
    run, _ = linear()
    right = run.model.transform
    run.model.transform = lambda y, **cond: (right(y, **cond)[0], 1.1 * right(y, **cond)[1])
    assert abs(density.of_plane(run, SQUARE, side=100).integral - 1) > 0.02


def test_classes_are_mixed_evenly_and_may_be_asked_for():
    torch.manual_seed(0)
    spec = Spec(Field("points", (2,)), {"label": Field("label", (), vocab=3)})
    run = Run.build({"model": {"name": "planar", "layers": 2, "classes": True}}, spec)
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(torch.randn(p.shape))
    run.model.eval().requires_grad_(False)
    x = torch.randn(20, 2)
    alone = [density.log_density(run, x, [k], run.model) for k in range(3)]
    both = density.log_density(run, x, None, run.model)
    torch.testing.assert_close(both, torch.logsumexp(torch.stack(alone), 0) - math.log(3), rtol=0, atol=1e-9)
    assert (alone[0] - alone[1]).abs().max() > 0.01


def test_ffjord_is_asked_for_its_trace_itself(tmp_path):
    run = Run.load(trained(tmp_path, smoke("ffjord-toy2d")))
    judged = density.exact(run)
    assert judged.config.divergence == "exact" and run.model.config.divergence == "hutchinson"
    x = torch.randn(8, 2)
    draws = [judged.log_prob(x, Rng.batch(i, total=8)) for i in range(2)]
    assert torch.equal(*draws) and "exact trace" in judged.estimate(1)


def test_a_denoiser_is_asked_for_its_ode(tmp_path):
    run = Run.load(trained(tmp_path, smoke("ddpm-toy2d")))
    run.model.denoise = lambda x, sigma, **cond: x / (1 + sigma.reshape(-1, 1) ** 2)  # of N(0, I)
    made = density.of_plane(run, (-4.0, 4.0, -4.0, 4.0), side=24)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(density.grid(made.extent, 24)).sum(1).exp().view(24, 24)
    assert made.integral == pytest.approx(1, abs=0.02)
    torch.testing.assert_close(made.p, normal, rtol=0.05, atol=1e-3)


def test_what_has_no_exact_density_of_the_plane_is_refused(tmp_path):
    with pytest.raises(GencliError, match="of points in the plane, run vae-digits makes image"):
        density.exact(Run.load(trained(tmp_path, table("vae", steps=1))))
    with pytest.raises(GencliError, match="gan-toy2d has no exact density"):
        density.exact(Run.load(trained(tmp_path, smoke("gan-toy2d"))))


def test_the_picture_is_darkest_where_the_density_is_greatest():
    square = (-2.0, 2.0, -2.0, 2.0)
    p = eight_gaussians(density.grid(square, 96)).exp().view(96, 96)
    page = pictures.density(p, square, 192).convert("L")
    assert page.size == (192, 192)
    centre, spot = page.getpixel((96, 96)), page.getpixel((int(192 * (2 + 1 / math.sqrt(0.5 + 0.125**2)) / 4), 96))
    assert centre > 250 > 60 > spot


def test_cells_that_no_float_holds_count_as_zero_and_are_counted():
    run, _ = linear()
    judged = run.model

    class Overflowing:
        def log_prob(self, x, rng, **cond):
            made = judged.log_prob(x, rng, **cond)
            return torch.where(x[:, 0] > 3, torch.nan, made)

    whole, made = density.of_plane(run, SQUARE, side=100), density.of_plane(run, SQUARE, side=100, judged=Overflowing())
    assert made.lost == 100 * 20 and whole.lost == 0 and not made.p[:, 80:].any()
    assert made.integral == pytest.approx(float(whole.p[:, :80].sum()) * 0.01) and made.integral < whole.integral
    Overflowing.log_prob = lambda self, x, rng, **cond: torch.full((len(x),), torch.nan)
    with pytest.raises(GencliError, match="no density anywhere"):
        density.of_plane(run, SQUARE, side=10, judged=Overflowing())
