"""The four shapes: where their points may lie, their moments, their labels."""

import math

import numpy as np
import pytest
import torch

from gencli.data import open_data
from gencli.data.toy2d import Toy2d
from gencli.errors import GencliError

SHAPES = ("8-gaussians", "moons", "checkerboard", "swiss-roll")


def points(shape, **settings):
    return open_data("toy2d", {"shape": shape, "size": 20_000, **settings}).split("train").x


@pytest.mark.parametrize("shape", SHAPES)
def test_points_have_mean_zero_and_unit_size(shape):
    x = points(shape)
    assert x.dtype == np.float32 and x.shape == (20_000, 2)
    assert np.abs(x.mean(0)).max() < 0.03 and abs(float((x**2).mean()) - 1) < 0.02


@pytest.mark.parametrize("shape", SHAPES)
def test_points_follow_the_seed_and_test_points_are_others(shape):
    assert np.array_equal(points(shape), points(shape))
    assert not np.array_equal(points(shape), points(shape, seed=1))
    data = open_data("toy2d", {"shape": shape, "size": 100})
    assert not set(map(tuple, data.split("train").x)) & set(map(tuple, data.split("test").x))


def test_eight_gaussians_lie_around_the_centre_their_label_names():
    data = open_data("toy2d", {"size": 20_000})
    split = data.split("train")
    label = split.cond["label"].numpy()
    radius = 1 / math.sqrt(0.5 + 0.125**2)
    centres = radius * np.stack([np.cos(np.arange(8) * math.pi / 4), np.sin(np.arange(8) * math.pi / 4)], 1)
    assert np.abs((split.x - centres[label]).std(0) - 0.125 * radius).max() < 0.005
    assert np.bincount(label).min() > 2300
    assert data.spec.cond["label"].vocab == 8 and data.spec.x.kind == data.kind == "points"


def test_the_checkerboard_has_points_on_eight_squares_only():
    x = points("checkerboard").astype(np.float64) * math.sqrt(4 / 3) + 2
    column, row = np.floor(x[:, 0] + 1e-6).astype(int), np.floor(x[:, 1] + 1e-6).astype(int)
    assert ((column + row) % 2 == 0).all() and column.min() == row.min() == 0 and column.max() == row.max() == 3
    assert np.bincount(column * 4 + row)[np.unique(column * 4 + row)].min() > 2300
    assert len(np.unique(column * 4 + row)) == 8


def test_the_moons_are_two_half_circles_and_the_roll_is_a_spiral():
    x = points("moons").astype(np.float64)
    a = np.linspace(0, math.pi, 2000)
    arms = np.concatenate([np.stack([np.cos(a), np.sin(a)], 1), np.stack([1 - np.cos(a), 0.5 - np.sin(a)], 1)])
    arms = (arms - arms.mean(0)) / math.sqrt(((arms - arms.mean(0)) ** 2).mean() + 0.01)
    near = np.sqrt(((x[:500, None] - arms) ** 2).sum(-1)).min(1)
    assert near.mean() < 0.2 and near.max() < 0.7
    from gencli.data.toy2d import Toy2d

    assert not Toy2d.make({"shape": "swiss-roll"}).spec.cond


def test_an_unknown_shape_lists_the_shapes():
    with pytest.raises(GencliError, match="moon"):
        open_data("toy2d", {"shape": "moon"})


@pytest.mark.parametrize(
    ("shape", "places"),
    [("8-gaussians", 201), ("25-gaussians", 401), ("moons", 101), ("swiss-roll", 101), ("checkerboard", 400)],
)
def test_the_density_sums_to_one_and_is_that_of_the_points(shape, places):
    data = Toy2d.make({"shape": shape, "size": 5000})
    reach = 2 / math.sqrt(4 / 3) if shape == "checkerboard" else 3.0
    side = (2 * torch.arange(places, dtype=torch.float64) + 1 - places) * reach / places  # middles of cells
    grid = torch.cartesian_prod(side, side)
    mass = data.log_density(grid).exp() * (2 * reach / places) ** 2
    assert float(mass.sum()) == pytest.approx(1, abs=1e-4)
    x = torch.from_numpy(data.split("test").x).double()
    for what in (lambda x: -data.log_density(x), lambda x: (5 * x).sin().prod(1), lambda x: (4 * x + 1).cos().prod(1)):
        seen, known = what(x), float((mass * what(grid).nan_to_num(posinf=0.0)).sum())
        assert float(seen.mean()) == pytest.approx(known, abs=4 * float(seen.std()) / math.sqrt(len(x)) + 1e-4)


def test_eight_gaussians_have_the_entropy_of_eight_that_hardly_overlap():
    data = Toy2d.make({"size": 20_000})
    nats = -data.log_density(torch.from_numpy(data.split("test").x))
    one = math.log(2 * math.pi * math.e * 0.125**2 / (0.5 + 0.125**2))
    assert float(nats.mean()) == pytest.approx(math.log(8) + one, abs=0.03)
