"""β-VAE: β = 1 is vae, rate and distortion move with β, the capacity is reached, and what is refused."""

import itertools

import pytest
import torch

from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.beta_vae import BetaVAE
from gencli.models.vae.vae import VAE

IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)))
POINTS = Spec(Field("points", (6,)))
NETS = {"encoder": {"name": "mlp", "width": 16}, "decoder": {"name": "mlp", "width": 16}}


def made(kind=BetaVAE, spec=IMAGES, **settings):
    torch.manual_seed(0)
    return kind.make({"dim": 4, **NETS, **settings}, spec)


def images(n):
    return torch.randint(17, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 8.0 - 1


def turn(n, step=0, key=0):
    return Turn("main", step, 100, Rng.batch("beta", key, total=n))


def stepped(model, x, steps=3):
    """Parameters after a few steps, and the last loss."""
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimiser.zero_grad()
        losses = model.loss({"x": x}, turn(len(x), step, step))
        losses["loss"].backward()
        optimiser.step()
    return [losses["each"].detach(), *(p.detach() for p in model.parameters())]


@pytest.mark.parametrize("prior", ["standard", "flow"])
def test_beta_one_is_vae_to_the_last_bit(prior):
    x = images(8)
    one, vae = stepped(made(beta=1.0, prior=prior), x), stepped(made(VAE, prior=prior), x)
    assert all(torch.equal(a, b) for a, b in zip(one, vae, strict=True))
    assert not torch.equal(stepped(made(beta=1.001, prior=prior), x)[0], vae[0])


def test_the_loss_weighs_the_divergence_and_bounds_do_not():
    model, x = made(beta=4.0), images(5)
    losses, vae = model.loss({"x": x}, turn(5)), made(VAE).loss({"x": x}, turn(5))
    torch.testing.assert_close(losses["loss"], vae["recon"] + 4 * vae["kl"])
    assert torch.equal(losses["bits_per_dim"], vae["bits_per_dim"]) and torch.equal(losses["kl"], vae["kl"])
    bounds = [one.log_prob(x, Rng.batch("b", total=5), 3) for one in (model, made(VAE))]
    assert torch.equal(*bounds)


def toy(n=256):
    """Points whose six numbers have variances from 4 down."""
    drawn = torch.randn(n, 6, generator=torch.Generator().manual_seed(1))
    return drawn * torch.tensor([2.0, 1.4, 1.0, 0.7, 0.5, 0.35])


def rate_and_distortion(beta, steps=120):
    model = made(BetaVAE, POINTS, beta=beta, likelihood="gaussian", scale=0.5)
    optimiser, x = torch.optim.Adam(model.parameters(), lr=1e-2), toy()
    for step in range(steps):
        optimiser.zero_grad()
        model.loss({"x": x}, turn(len(x), step, step))["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        shown = [model.loss({"x": x}, turn(len(x), 0, ("test", i))) for i in range(8)]
    return tuple(float(torch.stack([one[key] for one in shown]).mean()) for key in ("kl", "recon"))


def test_the_rate_falls_and_the_distortion_rises_with_beta():
    curve = [rate_and_distortion(beta) for beta in (0.5, 1.0, 4.0, 16.0)]
    for (rate, distortion), (less, more) in itertools.pairwise(curve):
        assert less < rate - 0.3 and more > distortion + 0.3, curve
    best = [rate + distortion for rate, distortion in curve]
    assert min(best) == best[1], "the bound is best where it is what is minimised"


# ---------------------------------------------------------------------------------------------------------------- capacity


def test_capacity_rises_linearly_to_its_end_and_the_gap_of_each_item_is_weighed():
    model, x = made(gamma=10.0, capacity=20.0, capacity_steps=40), images(6)
    kl = model.posterior(x).kl()
    for step, target in ((0, 0.0), (10, 5.0), (40, 20.0), (90, 20.0)):
        losses = model.loss({"x": x}, turn(6, step))
        assert float(losses["capacity"]) == target
        torch.testing.assert_close(losses["loss"], losses["recon"] + 10 * (kl - target).abs().mean())
    assert not torch.isclose((kl - kl.mean()).abs().mean(), (kl.mean() - kl.mean()).abs()), (
        "of an item, not of the batch"
    )


def test_the_divergence_goes_where_the_capacity_is():
    found = {}
    for nats in (1.0, 6.0):
        model = made(BetaVAE, POINTS, gamma=50.0, capacity=nats, capacity_steps=100, likelihood="gaussian", scale=0.5)
        optimiser, x = torch.optim.Adam(model.parameters(), lr=1e-2), toy()
        for step in range(200):
            optimiser.zero_grad()
            losses = model.loss({"x": x}, turn(len(x), step, step))
            losses["loss"].backward()
            optimiser.step()
        found[nats] = float(losses["kl"])
    assert all(abs(kl - nats) < 0.3 for nats, kl in found.items()), found
    assert abs(rate_and_distortion(1.0)[0] - 1.0) > 1.0, "which is not where beta leads"


def test_the_warm_up_raises_beta():
    model, x = made(beta=4.0, kl_warmup=10), images(5)
    losses = {step: model.loss({"x": x}, turn(5, step)) for step in (0, 5, 10, 50)}
    for step, share in ((0, 0.0), (5, 0.5), (10, 1.0), (50, 1.0)):
        one = losses[step]
        torch.testing.assert_close(one["loss"], one["recon"] + share * 4 * one["kl"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "iwae"}, "beta 4 weighs a KL divergence, and the objective iwae has none"),
        ({"objective": "iwae", "beta": 1.0, "gamma": 2.0}, "gamma 2 weighs a KL divergence"),
        ({"gamma": 2.0, "kl_warmup": 7}, "kl-warmup 7 raises beta, in whose place is gamma 2"),
        ({"beta": -1.0}, "beta is -1.0, the least is 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(GencliError, match=message) as caught:
        made(**settings)
    assert caught.value.hint


def test_beta_one_may_have_the_objective_iwae():
    x = images(4)
    assert torch.equal(
        *(
            made(kind, objective="iwae", **more).loss({"x": x}, turn(4))["each"]
            for kind, more in ((BetaVAE, {"beta": 1.0}), (VAE, {}))
        )
    )
