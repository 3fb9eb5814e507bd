"""Flow posteriors: the Gaussian VAE's bound at first, log q by the Jacobian, a flow as encoder and decoder, and the bounds."""

import itertools

import pytest
import torch
from flow_laws import points, shaken, slogdet
from torch import nn

from gencli.core import Field, Rng, Spec, Turn
from gencli.models.flow.maf import Maf
from gencli.models.vae.nf_vae import NfVae
from gencli.models.vae.vae import VAE
from gencli.nn.gaussian import standard_normal

POINTS = Spec(Field("points", (5,)))
IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)))
NETS = {"encoder": {"name": "mlp", "width": 16}, "decoder": {"name": "mlp", "width": 16}}
SMALL = {"dim": 3, "length": 3, "context": 6, "flow_width": 8, **NETS}
FLOWS = ["planar", "radial", "iaf"]


class Given(Rng):
    """Whatever is asked for, these normal numbers."""

    def __init__(self, numbers):
        self.numbers = numbers

    def at(self, *keys):
        return self

    def normal(self, shape, dtype=torch.float32):
        return self.numbers.reshape(shape)


def nf_vae(flow, spec=IMAGES, **settings):
    torch.manual_seed(0)
    return NfVae.make({"flow": flow, **SMALL, **settings}, spec).double()


def grid_images(n):
    return torch.randint(17, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 8.0 - 1


def plain(model):
    """The VAE whose networks a flow VAE has, without its context."""
    vae = VAE.make({"dim": 3, **NETS}, model.spec).double()
    vae.decoder.load_state_dict(model.decoder.state_dict())
    state = dict(model.encoder.state_dict())
    for key in ("body.2.weight", "body.2.bias"):
        state[key] = state[key][:6]
    vae.encoder.load_state_dict(state)
    return vae.eval().requires_grad_(False)


def opened(model):
    """Gates of iaf wide open, where its maps are the identity: σ(s + 2) = 1 in float64."""
    for layer in model.flow:
        if hasattr(layer, "net"):
            layer.net.last.bias.view(-1, 2)[:, 1] = 60.0
    return model


@pytest.mark.parametrize("flow", FLOWS)
def test_maps_that_do_nothing_leave_the_bounds_of_the_gaussian_vae(flow):
    model = opened(nf_vae(flow).eval().requires_grad_(False))
    vae, x = plain(model), grid_images(6).double()
    rng = Rng.batch("b", total=6)
    torch.testing.assert_close(model.log_prob(x, rng, 5), vae.log_prob(x, rng, 5), rtol=0, atol=1e-9)
    signs = [torch.tensor(s).double().expand(6, 3) for s in itertools.product((-1.0, 1.0), repeat=3)]
    mine, theirs = (torch.stack([one.log_prob(x, Given(s)) for s in signs]).mean(0) for one in (model, vae))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-9, msg="over ε = ±1 log q − log p has its mean, the KL")
    pushed = shaken(nf_vae(flow), 0.2)
    assert (pushed.log_prob(x, rng, 5) - plain(pushed).log_prob(x, rng, 5)).abs().max() > 1e-2


@pytest.mark.parametrize("flow", FLOWS)
def test_log_q_is_that_of_the_gaussian_less_the_jacobians(flow):
    model, x = shaken(nf_vae(flow), 0.2), grid_images(3).double()
    q, context = model.infer(x)
    noise = points(3, 3)
    z, log_q = model.draw_posterior(q, context, noise)
    start = q.draw(noise)
    assert (z - start).abs().max() > 0.01
    for i in range(3):
        volume = slogdet(lambda v, c=context[i : i + 1]: model.push(v, c)[0], start[i : i + 1])[0]
        torch.testing.assert_close(log_q[i], q.log_prob(start)[i] - volume, rtol=0, atol=1e-9)
    losses = model.loss({"x": x}, Turn("main", 0, 1, Given(noise)))
    torch.testing.assert_close(losses["kl"], (log_q - standard_normal(z)).mean(), rtol=0, atol=1e-9)


def test_iaf_is_kingmas_step_with_the_encoders_context():
    model = shaken(nf_vae("iaf", length=1), 0.3)
    (layer,) = model.flow
    z, context = points(4, 3), points(4, 6, seed=4)
    m, s = layer.net(z, context).unbind(-1)
    sigma = (s + 2).sigmoid()
    pushed, log_det = model.push(z, context)
    torch.testing.assert_close(pushed, sigma * z + (1 - sigma) * m)
    torch.testing.assert_close(log_det, sigma.log().sum(1))


class Around(nn.Module):
    """An encoder that knows x itself, to within σ."""

    def forward(self, x):
        return torch.cat([x, torch.full_like(x, -36.0), torch.zeros(len(x), 6).to(x)], 1)


class Back(nn.Module):
    def __init__(self, flow):
        super().__init__()
        self.flow = flow

    def forward(self, z):
        return self.flow.decode(z)


def test_a_flow_as_encoder_and_its_inverse_as_decoder_have_the_flows_likelihood():
    """q(z|x) = δ(z − f(x)) and p(x|z) = δ(x − f⁻¹(z)), as the limit of Gaussians of deviation e⁻¹⁸."""
    torch.manual_seed(0)
    flow = shaken(Maf.make({"layers": 2, "hidden": [16], "activation": "tanh"}, POINTS), 0.3)
    model = nf_vae("planar", POINTS, dim=5, likelihood="gaussian", scale=1.0).eval().requires_grad_(False)
    model.encoder, model.decoder, model.flow = Around(), Back(flow), flow.net
    model.observed.scale = float(torch.tensor(-18.0).double().exp())
    x = points(8, 5)
    exact = flow.log_prob(x, Rng.rows(range(8)))
    for samples in (1, 3):
        torch.testing.assert_close(model.log_prob(x, Rng.batch("b", total=8), samples), exact, rtol=0, atol=1e-5)
    volume = flow.forward_flow(x)[1].abs().min()
    assert volume > 1e-3, "without the volume it would not"


@pytest.mark.parametrize("flow", FLOWS)
def test_more_importance_samples_raise_the_bound(flow):
    model, x = shaken(nf_vae(flow), 0.05), grid_images(200).double()
    one, many = (model.log_prob(x, Rng.batch("k", total=200), samples=k).mean() for k in (1, 16))
    assert many > one
    assert model.encode(x[:2]).shape == (2, 3) and model.reconstruct(x[:2]).shape == (2, 1, 8, 8)


def test_a_posterior_that_no_gaussian_fits_is_reached():
    """x is the length of a two-number latent: p(z|x) is a ring. Maps come closer to log p(x) than a Gaussian alone."""
    torch.manual_seed(0)
    spec, n = Spec(Field("points", (1,))), 256

    class Length(nn.Module):
        def forward(self, z):
            return z.norm(dim=1, keepdim=True)

    def bound(kind, steps=250, **settings):
        torch.manual_seed(0)
        nets = {"encoder": {"name": "mlp", "width": 32}, "decoder": {"name": "mlp", "layers": 0}}
        model = kind.make({"dim": 2, "likelihood": "gaussian", "scale": 0.3, **nets, **settings}, spec)
        model.decoder = Length()
        optimizer = torch.optim.Adam(model.parameters(), 0.01)
        g = torch.Generator().manual_seed(0)
        for step in range(steps):
            x = torch.randn(n, 2, generator=g).norm(dim=1, keepdim=True) + 0.3 * torch.randn(n, 1, generator=g)
            optimizer.zero_grad()
            model.loss({"x": x}, Turn("main", step, steps, Rng.batch("fit", step, total=n)))["loss"].backward()
            optimizer.step()
        x = torch.randn(2000, 2, generator=g).norm(dim=1, keepdim=True) + 0.3 * torch.randn(2000, 1, generator=g)
        with torch.no_grad():
            return float(model.log_prob(x, Rng.batch("judge", total=2000)).mean())

    assert bound(NfVae, flow="iaf", length=2, context=8, flow_width=32) > bound(VAE) + 0.05
