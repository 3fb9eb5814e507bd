"""LSGM: theorem 1 against closed forms, the mixed score at its ends, gradients apart, and a prior that learns."""

import math

import pytest
import torch
from fitting import fit
from saved import saved
from tiny import smoke
from torch import nn

from gencli.bundle import Run
from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.lsgm import LSGM
from gencli.nn.gaussian import DiagonalGaussian, standard_normal

DIM = 3
SPEC = Spec(Field("vector", (DIM,)))
MLP = {"name": "mlp", "width": 32, "layers": 1}
NET = {"name": "denoising-mlp", "width": 32, "layers": 1}
SMALL = {"dim": DIM, "likelihood": "gaussian", "encoder": MLP, "decoder": MLP, "net": NET}


class Exact(nn.Module):
    """ε of latents that are N(0, v) without noise: σ z / ((1 − σ²) v + σ²)."""

    def __init__(self, v):
        super().__init__()
        self.v = torch.tensor(v, dtype=torch.float64)

    def forward(self, z, log_ratio):
        var = (2 * log_ratio).sigmoid()[:, None]
        return var.sqrt() * z / ((1 - var) * self.v + var)


def model(mix=None, net=None, **settings):
    torch.manual_seed(0)
    made = LSGM.make({**SMALL, **settings}, SPEC).double()
    if mix is not None:
        made.over_latents.mix.data.fill_(mix)
    if net is not None:
        made.over_latents.net = net
    return made


def drawn(n, floor):
    """A posterior of latents without noise, a draw of it, and the same posterior with it."""
    mean, log_var = torch.tensor([[0.5, -1.0, 0.2]]).double(), torch.tensor([[-1.0, -0.2, -3.0]]).double()
    clean = DiagonalGaussian(mean.expand(n, -1), log_var.expand(n, -1))
    z = clean.draw(Rng.batch("z", total=n).normal((n, DIM)).double())
    return z, DiagonalGaussian(math.sqrt(1 - floor) * mean, ((1 - floor) * log_var.exp() + floor).log())


def within(estimates, truth, errors=3.0, share=0.05):
    error = estimates.std() / math.sqrt(len(estimates))
    assert error < share * abs(truth), (error, truth)
    assert abs(estimates.mean() - truth) < errors * error, (estimates.mean(), truth, error)


def test_without_the_network_the_divergence_is_that_of_a_plain_vae():
    made = model(mix=-math.inf)
    z, q = drawn(20_000, made.config.floor)
    cross, _ = made.cross_entropy(z, Rng.batch("t", total=len(z)))
    entropy = 0.5 * (1 + math.log(2 * math.pi) + q.log_var).sum()
    within(cross - entropy, q.kl().item())
    here = q.draw(torch.randn(5, DIM, generator=torch.Generator().manual_seed(0)).double())
    torch.testing.assert_close(made.log_prior(here), standard_normal(here), rtol=0, atol=1e-10)


@pytest.mark.parametrize("v", [(0.25, 4.0, 1.0), (0.05, 0.5, 9.0)])
def test_the_cross_entropy_to_a_gaussian_prior_is_the_closed_form(v):
    made = model(mix=math.inf, net=Exact(v))
    floor = made.config.floor
    z, q = drawn(20_000, floor)
    wide = (1 - floor) * torch.tensor(v, dtype=torch.float64) + floor
    truth = 0.5 * ((2 * math.pi * wide).log() + (q.mean**2 + q.log_var.exp()) / wide).sum().item()
    within(made.cross_entropy(z, Rng.batch("t", total=len(z)))[0], truth)
    within(
        model(mix=math.inf, net=Exact((1.0, 1.0, 1.0))).cross_entropy(z, Rng.batch("t", total=len(z)))[0],
        standard_truth(q),
    )


def standard_truth(q):
    return 0.5 * (math.log(2 * math.pi) + q.mean**2 + q.log_var.exp()).sum().item()


def test_the_estimate_has_no_heavy_tail_and_no_bias_from_how_times_are_drawn():
    """∫ over t of the weight times what is known, by many draws and by quadrature."""
    prior = model().over_latents
    noised = prior.noised(torch.zeros(200_000, DIM).double(), Rng.batch("t", total=200_000))
    assert float((noised.rarity).max()) <= 10.0 and abs(float(noised.rarity.mean()) - 1) < 0.02
    t = (torch.arange(200_000).double() + 0.5) / 200_000
    var = prior.var_at(t)
    truth = (prior.beta_at(var) / (2 * var) * (1 - var)).mean()
    assert abs(float((noised.weight * (1 - noised.var)).mean() / truth) - 1) < 0.01
    torch.testing.assert_close(prior.beta_at(var), 0.1 + 19.9 * t, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("v", [(0.25, 4.0, 1.0)])
def test_the_ode_gives_the_density_and_the_draws_of_a_gaussian_prior(v):
    made = model(mix=math.inf, net=Exact(v), ode_steps=60)
    wide = (1 - made.config.floor) * torch.tensor(v, dtype=torch.float64) + made.config.floor
    z = torch.randn(50, DIM, generator=torch.Generator().manual_seed(0)).double() * wide.sqrt()
    truth = DiagonalGaussian(torch.zeros_like(z), wide.log().expand_as(z)).log_prob(z)
    torch.testing.assert_close(made.log_prior(z), truth, rtol=0, atol=2e-3)
    far = model(mix=math.inf, net=Exact(v), ode_steps=6).log_prior(z)
    assert (far - truth).abs().max() > 5e-3  # few steps are seen
    draws = made.prior(4000, Rng.batch("p", total=4000))
    torch.testing.assert_close(draws.var(0).double(), wide, rtol=0.1, atol=0)


def grads(made, loss):
    made.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in made.named_parameters()}


def test_unweighted_the_prior_and_the_encoder_do_not_feel_the_other_ones_loss():
    x = torch.randn(16, DIM, generator=torch.Generator().manual_seed(0)).double()
    turn = Turn(rng=Rng.rows(range(16)), phase="model", step=10, steps=20)

    def of(weighting):
        made = model(weighting=weighting)
        nn.init.normal_(made.over_latents.net.last.weight)
        return made, grads(made, made.loss({"x": x}, turn)["loss"])

    (made, apart), (_, joint) = of("unweighted"), of("likelihood")
    for name in apart:
        if name.startswith(("encoder", "decoder")):
            torch.testing.assert_close(apart[name], joint[name], rtol=1e-9, atol=1e-12)
    own = [name for name in apart if name.startswith("over_latents")]
    assert own and all(
        not torch.allclose(apart[name], joint[name], rtol=1e-3) for name in own if apart[name].abs().max() > 0
    )
    z = torch.zeros(16, DIM).double().requires_grad_()
    _, fit_loss = made.cross_entropy(z, Rng.batch("t", total=len(z)))
    assert not torch.autograd.grad(fit_loss.sum(), z, allow_unused=True, retain_graph=True)[0]


def test_the_objective_iwae_is_refused():
    with pytest.raises(GencliError, match="no objective iwae"):
        model(objective="iwae")


def test_a_prior_that_learns_has_the_better_bound():
    """Latents in two clusters; the same with a = 0 keeps the divergence to N(0, I)."""
    x = (
        torch.randn(512, 1, generator=torch.Generator().manual_seed(1)) * 0.1
        + torch.tensor([-1.0, 1.0]).repeat(256)[:, None]
    )
    spec = Spec(Field("vector", (1,)))

    def bound(frozen):
        torch.manual_seed(0)
        made = LSGM.make({**SMALL, "dim": 1, "scale": 0.1}, spec)
        if frozen:
            made.over_latents.mix.data.fill_(-math.inf)
            made.over_latents.requires_grad_(False)
        wanted = [p for p in made.parameters() if p.requires_grad]
        fit(
            wanted,
            lambda i: made.loss({"x": x}, Turn(rng=Rng.batch("train", i, total=512), phase="model", step=i, steps=250))[
                "loss"
            ],
            250,
            3e-3,
        )
        return made.log_prob(x, Rng.rows(range(512)))

    learned, plain = bound(False), bound(True)
    apart = learned - plain
    assert apart.mean() > 0.1 and apart.mean() > 4 * apart.std() / math.sqrt(512), (learned.mean(), plain.mean())


def test_its_recipe_trains_and_draws(tmp_path):
    run = Run.load(saved(tmp_path, smoke("lsgm")))
    z = run.model.prior(4, Rng.rows(range(4)))
    torch.testing.assert_close(z[1:3], run.model.prior(2, Rng.rows([1, 2])))
