"""Classical priors: closed forms, exact proximal steps, objectives that fall, and what no model has a part in."""

import math

import pytest
import torch
from denoisers import Exact as OfGaussian
from torch.nn import functional as F

from gencli.config import choose
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.operators._priors import PRIORS, differences, differences_back, haar, haar_back, shrunk
from gencli.samplers.classical import Classical

FIELD = Field("image", (1, 8, 8), range=(-1.0, 1.0))
SPEC = Spec(FIELD)
TABLES = [
    {"name": "inpaint", "mask": "box"},
    {"name": "super-resolution", "factor": 2},
    {"name": "deblur", "width": 1.5},
    {"name": "compressed-sensing", "share": 0.5},
]
IDS = [table["name"] for table in TABLES]
EVERYTHING = {"name": "compressed-sensing", "share": 1.0}  # an orthonormal transform: as good as the image itself


class Silent(OfGaussian):
    """A model that must not be asked."""

    spec = SPEC

    def denoise(self, x, sigma, **cond):
        raise AssertionError("the model was asked")


def rand(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def truth(n=3):
    """Flat pieces with edges."""
    return F.interpolate(rand(n, 1, 4, 4).sign() * 0.8, scale_factor=2)


def measured(table, x, noise=0.1):
    operator = choose("operators", table).build(FIELD)
    y = operator.measure(x)
    return operator, y + noise * torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=y.dtype)


def frames(y, **settings):
    n = len(y)
    sampler = Classical.make({"noise": 0.1, **settings})
    return sampler, list(sampler.frames(Silent(), SPEC, n, Rng.batch(0, total=n), {"measured": y}))


def restored(y, **settings):
    return frames(y, **settings)[1][-1].x


def matrix(f, *shape):
    """The matrix of a linear map of images."""
    size = math.prod(shape)
    return f(torch.eye(size, dtype=torch.float64).view(size, *shape)).flatten(1).T


# ------------------------------------------------------------------------------------------------------------- the priors


@pytest.mark.parametrize(
    ("f", "back"), [(differences, differences_back), (lambda x: haar(x, 3), lambda c: haar_back(c, 3))]
)
def test_each_map_has_its_transpose(f, back):
    x = rand(2, 3, 8, 16)
    c = rand(*f(x).shape, seed=1)
    assert float((f(x) * c).sum()) == pytest.approx(float((x * back(c)).sum()), abs=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_haar_transform_is_orthonormal_and_its_first_number_the_mean(depth):
    whole = matrix(lambda x: haar(x, depth), 1, 8, 8)
    assert torch.allclose(whole @ whole.T, torch.eye(64, dtype=torch.float64), atol=1e-12)
    x = rand(2, 1, 8, 8)
    assert torch.allclose(haar_back(haar(x, depth), depth), x, atol=1e-12)
    corner = haar(x, depth)[..., : 8 >> depth, : 8 >> depth]
    assert torch.allclose(corner, F.avg_pool2d(x, 2**depth) * 2**depth, atol=1e-12)


@pytest.mark.parametrize("name", PRIORS)
def test_a_constant_image_has_no_roughness_and_the_bound_of_the_map_holds(name):
    prior = PRIORS[name]((1, 8, 8))
    assert prior.value(torch.full((2, 1, 8, 8), 0.7, dtype=torch.float64)).abs().max() < 1e-12
    norm = float(torch.linalg.matrix_norm(matrix(prior.map, 1, 8, 8), 2)) ** 2
    assert 0.9 * prior.bound < norm < prior.bound + 1e-12


def test_total_variation_is_the_length_of_edges_times_their_height():
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 3:] = 0.5
    assert float(PRIORS["tv"]((1, 8, 8)).value(x)) == pytest.approx(8 * 0.5)
    x = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    x[..., 2, 2] = 1  # two differences of one pixel and one of each of two neighbours
    assert float(PRIORS["tv"]((1, 8, 8)).value(x)) == pytest.approx(2 + math.sqrt(2))
    assert float(PRIORS["tikhonov"]((1, 8, 8)).value(x)) == pytest.approx(4 / 2)


@pytest.mark.parametrize("k", [1, 2])
def test_the_soft_threshold_is_the_exact_proximal_step_of_a_sum_of_lengths(k):
    """No point of a fine grid is better, and for single numbers it is sign(z) max(|z| − τ, 0)."""
    z, tau = rand(50, k), 0.4
    found = shrunk(z, tau)
    if k == 1:
        assert torch.allclose(found, z.sign() * (z.abs() - tau).clamp(min=0), atol=1e-15)
    line = torch.linspace(-1.2, 1.2, 121, dtype=torch.float64)
    grid = torch.cartesian_prod(*[line] * k).view(-1, 1, k)

    def cost(c):
        return (c - z).square().sum(-1) / 2 + tau * c.norm(dim=-1)

    gap = cost(grid).min(0).values - cost(found)
    assert gap.min() > -1e-15 and gap.max() < 1e-3, "no better point, and the grid comes near"
    assert (cost(z * 0.5) > cost(found)).any()


# -------------------------------------------------------------------------------------------------------- what is reached


@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_tikhonov_is_the_solution_of_its_normal_equations(table):
    operator, y = measured(table, truth())
    a, slope = matrix(operator.measure, 1, 8, 8), matrix(differences, 1, 8, 8)
    lam = 3.0 * 0.1**2
    wanted = torch.linalg.solve(a.T @ a + lam * slope.T @ slope, a.T @ y.flatten(1).T).T
    found = restored(y, prior="tikhonov", weight=3.0, operator=table).flatten(1)
    assert (found - wanted).abs().max() < 1e-6
    assert (found - operator.pseudo_inverse(y).flatten(1)).abs().max() > 0.1, "least squares alone would fail"


def test_wavelets_of_an_image_that_is_all_measured_are_thresholded_once():
    operator, y = measured(EVERYTHING, truth())
    seen, lam = operator.adjoint(y), 3.0 * 0.1**2
    c = haar(seen, 3)
    wanted = c.sign() * (c.abs() - lam).clamp(min=0)
    wanted[..., 0, 0] = c[..., 0, 0]
    found = restored(y, prior="wavelet", weight=3.0, operator=EVERYTHING)
    assert (found - haar_back(wanted, 3)).abs().max() < 1e-5


def test_total_variation_moves_two_flat_halves_together_by_twice_lambda_over_the_width():
    x = torch.full((1, 1, 8, 8), -0.5, dtype=torch.float64)
    x[..., 4:] = 0.5
    _, y = measured(EVERYTHING, x, noise=0)
    lam = 20 * 0.1**2
    wanted = x - x.sign() * 2 * lam / 8
    assert (restored(y, prior="tv", weight=20.0, operator=EVERYTHING) - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("table", TABLES, ids=IDS)
def test_the_objective_falls_at_every_step_and_ends_where_nothing_near_is_lower(table, prior):
    operator, y = measured(table, truth())
    sampler, made = frames(y, prior=prior, operator=table)
    memory = {"operator": operator, "y": y, "prior": PRIORS[prior]((1, 8, 8))}
    values = torch.stack([sampler.objective(frame.x, memory) for frame in made])
    assert (values.diff(dim=0) <= 1e-12 * values[:-1].abs()).all() and (values[-1] < values[0]).all()
    best, least = made[-1].x, values[-1]
    for other in (truth(), operator.adjoint(y), torch.zeros_like(best), best + rand(*best.shape), best.roll(1, 3)):
        for share in (1e-2, 0.3):
            assert (sampler.objective(torch.lerp(best, other, share), memory) >= least - 1e-7).all()


def test_flat_pieces_are_restored_better_by_total_variation_than_by_what_is_smooth():
    """Each with the weight that is best for it."""
    table = {"name": "deblur", "width": 0.8}
    x = truth(8)
    _, y = measured(table, x)

    def off(prior):
        made = (restored(y, prior=prior, weight=weight, operator=table) for weight in (0.5, 1.5, 4.5))
        return min(float((each - x).square().mean()) for each in made)

    assert off("tv") < 0.7 * off("tikhonov") and off("tikhonov") < float((y - x).square().mean())


def test_holes_are_filled_where_there_is_no_noise():
    x = torch.full((1, 1, 8, 8), 0.6, dtype=torch.float64)
    table = {"name": "inpaint", "mask": "box"}
    _, y = measured(table, x, noise=0)
    for prior in PRIORS:
        assert (restored(y, prior=prior, noise=0.0, operator=table) - x).abs().max() < 1e-3, prior


def test_an_image_does_not_depend_on_its_batch_mates():
    _, y = measured(TABLES[2], truth(5))
    for prior in PRIORS:
        whole, alone = (restored(part, prior=prior, operator=TABLES[2], steps=50) for part in (y, y[3:4]))
        assert (whole[3] - alone[0]).abs().max() < 1e-9


# ------------------------------------------------------------------------------------------------------- what is refused


def test_the_network_is_never_asked_and_that_is_what_is_said():
    sampler, made = frames(measured(TABLES[0], truth())[1], steps=5)
    assert len(made) == 5 and sampler.evaluations(Silent(), SPEC) == 0


def test_wavelets_of_odd_sides_are_refused():
    odd = Spec(Field("image", (1, 7, 8), range=(-1.0, 1.0)))
    with pytest.raises(GencliError, match="8×7 does not halve"):
        list(
            Classical.make({"prior": "wavelet"}).frames(
                Silent(), odd, 1, Rng.batch(0, total=1), {"measured": torch.zeros(1, 1, 7, 8)}
            )
        )


def test_an_operator_that_is_not_linear_and_no_measurement_are_refused():
    with pytest.raises(GencliError, match="needs a linear operator, phase-retrieval is none"):
        restored(truth(1), operator="phase-retrieval")
    with pytest.raises(GencliError, match="restores images and was given none"):
        list(Classical.make().frames(Silent(), SPEC, 1, Rng.batch(0, total=1), {}))
