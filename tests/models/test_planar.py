"""Planar flows: fits of data and of the paper's energies, better with more maps."""

import pytest
import torch
from flow_laws import descend, gaussian_loses, lost, plane

from gencli.core import Field, Rng, Spec, Turn
from gencli.models.flow.planar import Planar

SPEC = Spec(Field("points", (2,)))


def divergence(layers, steps, rows=128, lr=0.02):
    """KL(q ‖ p) of a flow fitted to U2, by 20,000 fresh draws."""
    torch.manual_seed(0)
    model = Planar.make({"layers": layers, "target": "energy-u2"}, SPEC)
    model = descend(model, lambda step: torch.zeros(rows, 2), steps, lr, rows)
    n = 20_000
    return float(model.loss({"x": torch.zeros(n, 2)}, Turn("main", 0, 1, Rng.batch("judge", total=n)))["loss"])


def test_the_divergence_from_u2_falls_with_the_number_of_maps():
    start, two, eight = divergence(1, 0), divergence(2, 150), divergence(8, 250)
    assert two < 0.7 * start and eight < 0.8 * two


@pytest.mark.slow
def test_thirty_two_maps_are_better_than_eight():
    two, eight, many = (divergence(layers, 2000, 256, 0.01) for layers in (2, 8, 32))
    assert many < 0.8 * eight < 0.6 * two


def test_points_are_learned_better_than_by_a_gaussian():
    model, test = plane("planar", {"layers": 8}, 250, 0.02)
    assert lost(model, test) < 0.9 * gaussian_loses(test)
