"""Radial flows: the family of planar ones with other maps."""

import torch
from fitting import fit
from flow_laws import gaussian_loses, lost, plane, points, shaken, undoes

from gencli import registry
from gencli.core import Field, Spec
from gencli.nn.linear_maps import LU
from gencli.nn.planar import Radial as Bump


def test_points_are_learned_better_than_by_a_gaussian():
    model, test = plane("radial", {"layers": 12}, 250, 0.02)
    assert all(isinstance(layer, Bump) for layer in model.net)
    assert lost(model, test) < 0.9 * gaussian_loses(test)


def test_on_numbers_that_depend_on_each_other_bumps_bend_a_gaussian_of_full_covariance():
    """Twelve numbers of which every one nearly repeats the one before; without the map bumps alone do not reach a Gaussian."""
    steps = points(2000, 12) * torch.tensor([1.0] + [0.1] * 11).double()
    x = steps.cumsum(1)
    entropy = 0.5 * torch.logdet(2 * torch.pi * torch.e * x.T.cov())

    def loses(linear):
        torch.manual_seed(0)
        settings = {"layers": 4, "linear": linear}
        model = registry.load("models", "radial").make(settings, Spec(Field("vector", (12,)))).double()
        assert isinstance(next(iter(model.net)), LU) == linear
        fit(model.parameters(), lambda _: -model.log_prob(x[:1000], None).mean(), 200, 0.03)
        with torch.no_grad():
            return float(-model.log_prob(x[1000:], None).mean() - entropy)

    assert loses(True) < 0.3 and loses(False) > 2


def test_with_the_map_it_is_still_inverted():
    model = registry.load("models", "radial").make({"layers": 3, "linear": True}, Spec(Field("vector", (4,))))
    net = shaken(model).net
    undoes(net, net.inverse, points(9, 4))
