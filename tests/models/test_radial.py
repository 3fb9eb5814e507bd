"""Radial flows: the family of planar ones with other maps."""

from flow_laws import gaussian_loses, lost, plane

from gencli.nn.planar import Radial as Bump


def test_points_are_learned_better_than_by_a_gaussian():
    model, test = plane("radial", {"layers": 12}, 250, 0.02)
    assert all(isinstance(layer, Bump) for layer in model.net)
    assert lost(model, test) < 0.9 * gaussian_loses(test)
