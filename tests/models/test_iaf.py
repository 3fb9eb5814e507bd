"""IAF as a density: MAF turned round."""

import torch
from flow_laws import gaussian_loses, jacobian, lost, plane, points, shaken

from gencli.core import Field, Rng, Spec
from gencli.models.flow.iaf import Iaf
from gencli.models.flow.maf import Maf

SPEC = Spec(Field("points", (5,)))
SETTINGS = {"layers": 3, "hidden": [16, 16], "activation": "tanh"}


def pair():
    """A MAF, and an IAF whose layers have the same weights from the last to the first."""
    maf = shaken(Maf.make(SETTINGS, SPEC), 0.3)
    iaf = Iaf.make(SETTINGS, SPEC).double().eval().requires_grad_(False)
    for mine, theirs in zip(iaf.net, reversed(list(maf.net)), strict=True):
        mine.inner.load_state_dict(theirs.state_dict())
    return maf, iaf


def test_with_the_same_weights_it_is_the_inverse_of_maf():
    maf, iaf = pair()
    x = points(20, 5)
    there, log_det = iaf.forward_flow(x)
    torch.testing.assert_close(there, maf.decode(x), rtol=0, atol=1e-9)
    back, undone = maf.forward_flow(there)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(log_det + undone, torch.zeros(20).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(iaf.decode(x), maf.forward_flow(x)[0], rtol=0, atol=1e-9)
    assert (there - x).abs().max() > 0.1


def test_a_sample_is_mu_plus_sigma_z_of_earlier_noise():
    """The paper's equation, in its own symbols."""
    iaf = Iaf.make({**SETTINGS, "layers": 1}, SPEC)
    iaf = shaken(iaf, 0.3)
    layer, z = iaf.net.layers[0].inner, points(20, 5)
    m, a = layer.net(z).unbind(-1)
    sigma = (-a).exp()
    torch.testing.assert_close(iaf.decode(z), -m * sigma + sigma * z, rtol=0, atol=1e-12)
    seen = jacobian(iaf.decode, z[0])
    assert torch.equal(seen, seen.tril())


def test_points_are_learned_better_than_by_a_gaussian():
    model, test = plane("iaf", {"layers": 3, "hidden": [32, 32]}, 120, 1e-2)
    assert lost(model, test) < 0.9 * gaussian_loses(test)
    assert model.log_prob(test, Rng.rows([0])).isfinite().all()
