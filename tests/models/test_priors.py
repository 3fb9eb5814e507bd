"""Priors of VAEs: densities that sum to one, draws that have them, what the best prior is, and every combination with a VAE."""

import copy
import itertools
import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, kl_divergence

from gencli.config import parse
from gencli.core import Autoencoder, Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae._priors import PRIORS
from gencli.models.vae.vae import VAE
from gencli.nn.gaussian import DiagonalGaussian, mixture_log_prob

LEARNED = ("mixture", "vampprior", "flow", "autoregressive")
PLANE = Spec(Field("points", (2,)))
IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)), {"label": Field("label", (), vocab=10)})
MLP = {"encoder": {"name": "mlp", "width": 16}, "decoder": {"name": "mlp", "width": 16}}
HALVES = {"width": 8, "residual_width": 4, "residual_blocks": 1, "downsamples": 2}
CONV = {"encoder": {"name": "conv-encoder", **HALVES}, "decoder": {"name": "conv-decoder", **HALVES}}


def wide(u, **cond):
    """A posterior that is known: N(u, ¼)."""
    return DiagonalGaussian(u, torch.full_like(u, math.log(0.25)))


def prior(name, dim=2, shake=0.4, components=4, **settings):
    """A prior by itself in float64, away from where it begins."""
    torch.manual_seed(0)
    values = {"dim": dim, "prior_width": 24, "prior_layers": 2, "components": components, **settings}
    made = PRIORS[name](parse(VAE.Config, values), PLANE, wide).double()
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.add_(shake * torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=p.dtype))
    return made


def vae(spec=IMAGES, **settings):
    torch.manual_seed(0)
    return VAE.make({"dim": 4, "components": 5, "prior_width": 16, **MLP, **settings}, spec)


def images(n, seed=0):
    return torch.randint(17, (n, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) / 8.0 - 1


def turn(n, key=0):
    return Turn("main", 0, 10, Rng.batch("prior", key, total=n))


# -------------------------------------------------------------------------------------------------------------- densities


def grid(step=0.1, end=10.0):
    line = torch.arange(-end, end, step, dtype=torch.float64) + step / 2
    return torch.cartesian_prod(line, line), step**2


@pytest.mark.parametrize("name", PRIORS)
def test_a_density_sums_to_one_and_draws_have_it(name):
    made = prior(name, shake=0.15 if name in ("flow", "autoregressive") else 0.4)
    cells, area = grid()
    with torch.no_grad():
        log_p = made.log_prob(cells)
        z = made.draw(4000, Rng.rows(range(4000))).double()
        drawn = made.log_prob(z)
    p = log_p.exp() * area
    assert abs(float(p.sum()) - 1) < 2e-3, "and nothing is outside the grid"
    negentropy = float((p * log_p).sum())
    assert abs(float(drawn.mean()) - negentropy) < 4 * float(drawn.std()) / math.sqrt(4000)
    mean = (p[:, None] * cells).sum(0)
    spread = (p[:, None] * (cells - mean).square()).sum(0).sqrt()
    assert ((z.mean(0) - mean).abs() < 4 * spread / math.sqrt(4000)).all() and (
        (z.std(0) / spread - 1).abs() < 0.1
    ).all()
    others = torch.randn(4000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if name != "standard":  # the control: draws of N(0, I) do not have it
        wrong = made.log_prob(others).detach()
        assert abs(float(wrong.mean()) - negentropy) > 8 * float(wrong.std()) / math.sqrt(4000)


@pytest.mark.parametrize("name", PRIORS)
def test_a_draw_is_its_seeds_own(name):
    made = prior(name).float()
    with torch.no_grad():
        together = made.draw(6, Rng.rows(range(6)))
        alone = torch.cat([made.draw(1, Rng.rows([seed])) for seed in range(6)])
    torch.testing.assert_close(together, alone)


def test_a_mixtures_density_is_torchs():
    made, (z, _) = prior("mixture", shake=1.0), grid(0.7)
    log_weights, parts = made.components()
    inside = Independent(Normal(parts.mean, (0.5 * parts.log_var).exp()), 1)
    reference = MixtureSameFamily(Categorical(logits=log_weights), inside)
    torch.testing.assert_close(made.log_prob(z), reference.log_prob(z))
    torch.testing.assert_close(mixture_log_prob(z, log_weights, parts), reference.log_prob(z))


def test_conditionals_see_only_what_comes_before():
    made, z = prior("autoregressive", dim=4), torch.randn(1, 4, dtype=torch.float64)
    seen = torch.autograd.functional.jacobian(lambda z: made.conditionals(z)[1].mean.sum(-1), z)[0, :, 0]  # (of, by)
    assert torch.equal(seen != 0, torch.ones(4, 4).tril(-1).bool())


def test_learned_priors_begin_as_wide_as_the_standard_one():
    for name in ("mixture", "flow", "autoregressive"):
        z = prior(name, shake=0.0, components=64).draw(4000, Rng.rows(range(4000))).detach()
        assert z.mean(0).abs().max() < 0.2 and (z.std(0) - 1).abs().max() < 0.2, name
    z = torch.randn(9, 2, dtype=torch.float64)
    exact = MultivariateNormal(torch.zeros(2), torch.eye(2)).log_prob(z.float())
    for name, one in (("flow", {}), ("mixture", {"components": 1}), ("autoregressive", {"components": 1})):
        torch.testing.assert_close(prior(name, shake=0.0, **one).log_prob(z).float(), exact, msg=name)


# ------------------------------------------------------------------------------------------------------- K = 1 is the vae


def test_one_standard_component_reproduces_vae_to_the_last_bit():
    x, made = images(6), {}
    for name, model in (("standard", vae()), ("mixture", vae(prior="mixture", components=1))):
        losses = model.loss({"x": x}, turn(6))
        losses["loss"].backward()
        with torch.no_grad():
            bound = model.log_prob(x, Rng.batch("b", total=6))
        grads = [p.grad for part in (model.encoder, model.decoder) for p in part.parameters()]
        made[name] = [losses["each"], losses["kl"], bound, *grads]
    assert all(torch.equal(a, b) for a, b in zip(made["standard"], made["mixture"], strict=True))
    several = vae(prior="mixture", components=2).loss({"x": x}, turn(6))
    assert not torch.equal(several["each"], made["standard"][0])


def test_the_divergence_of_two_gaussians_is_torchs_and_zero_of_equal_ones():
    g = torch.Generator().manual_seed(0)
    q, p = (DiagonalGaussian(*torch.randn(2, 7, 3, generator=g, dtype=torch.float64)) for _ in range(2))
    normal = [Normal(one.mean, (0.5 * one.log_var).exp()) for one in (q, p)]
    torch.testing.assert_close(q.kl(p), kl_divergence(*normal).sum(1))
    assert q.kl(q).tolist() == [0.0] * 7 and not torch.allclose(q.kl(p), p.kl(q))
    assert torch.equal(q.kl(DiagonalGaussian(torch.zeros(7, 3), torch.zeros(7, 3))), q.kl())


# ----------------------------------------------------------------------------------------------------- the best prior


def elbo(model, x, draws=8):
    return torch.stack([model.log_prob(x, Rng.batch("e", i, total=len(x))) for i in range(draws)]).mean(0).detach()


def test_all_training_points_as_pseudo_inputs_have_a_mean_elbo_at_least_that_of_the_standard_prior():
    """The aggregated posterior is the best prior there is for an encoder, whatever the encoder and the decoder are."""
    n = 150
    x = images(n)
    standard = vae(dim=3).double()
    model = vae(dim=3, prior="vampprior", components=n).double()
    with torch.no_grad():
        last = standard.encoder.body[-1]
        last.weight[:3], last.weight[3:], last.bias[3:] = 6 * last.weight[:3], 0.0, math.log(0.1)
        for part, of in ((model.encoder, standard.encoder), (model.decoder, standard.decoder)):
            for p, q in zip(part.parameters(), of.parameters(), strict=True):
                p.copy_(q)
        model.over_latents.inputs.copy_(x)
        gain = elbo(model, x.double()) - elbo(standard, x.double())
        assert float(gain.mean()) > 4 * float(gain.std()) / math.sqrt(n)
        q = model.posterior(x.double())
        z = q.draw(torch.randn(q.mean.shape, dtype=torch.float64))
        torch.testing.assert_close(
            model.log_prior(z), mixture_log_prob(z, torch.full((n,), -math.log(n), dtype=torch.float64), q)
        )
        best = elbo(model, x.double())
        for others in (x[: n // 2].repeat(2, 1, 1, 1), images(n, seed=1), x[:1].expand(n, -1, -1, -1)):  # the controls
            model.over_latents.inputs.copy_(others)
            loss = best - elbo(model, x.double())
            assert float(loss.mean()) > 4 * float(loss.std()) / math.sqrt(n)


def clusters(n, seed=0):
    g = torch.Generator().manual_seed(seed)
    middles = torch.tensor([[-2.0, -2.0], [-2.0, 2.0], [2.0, -2.0], [2.0, 2.0]])
    return middles[torch.randint(3, (n,), generator=g)] + 0.3 * torch.randn(n, 2, generator=g)


@pytest.mark.parametrize("name", LEARNED)
def test_training_brings_a_prior_to_codes_that_no_gaussian_fits(name):
    made = prior(name, shake=0.0, components=6, prior_width=48, prior_layers=3).float()
    made.initialise(iter([{"x": clusters(200)}]), Rng.batch("i", total=1))
    before = float(-made.log_prob(clusters(2000, seed=1)).mean().detach())
    optimiser = torch.optim.Adam(made.parameters(), lr=2e-2)
    for step in range(150):
        optimiser.zero_grad()
        (-made.log_prob(clusters(200, seed=2 + step)).mean()).backward()
        optimiser.step()
    test = clusters(2000, seed=1)
    gaussian = MultivariateNormal(test.mean(0), test.T.cov())
    bar = float(-gaussian.log_prob(test).mean()) - 0.5
    assert float(-made.log_prob(test).mean().detach()) < bar
    assert before > bar or name == "vampprior", "and it was not there from the start"


# ---------------------------------------------------------------------------------------------------------- pseudo-inputs


@pytest.mark.parametrize("kept", ["learned", "data"])
def test_pseudo_inputs_begin_as_items_with_their_classes(kept):
    model = vae(prior="vampprior", components=12, pseudo_inputs=kept, classes=True)
    batches = [{"x": images(8, seed), "label": torch.arange(8) + seed} for seed in range(2)]
    model.initialise(iter(batches), 100, Rng.batch("i", total=1))
    u = model.over_latents.inputs
    assert torch.equal(u, torch.cat([images(8, 0), images(8, 1)])[:12])
    assert model.over_latents.given_label.tolist() == [*range(8), *range(1, 5)]
    assert isinstance(u, torch.nn.Parameter) == (kept == "learned") and "over_latents.inputs" in model.state_dict()
    exact = model.posterior(u, label=model.over_latents.given_label)
    assert torch.equal(model.over_latents.components()[1].mean, exact.mean)


def test_learned_pseudo_inputs_stay_in_the_datas_range_and_learn_at_its_ends():
    model = vae(prior="vampprior")
    with torch.no_grad():
        model.over_latents.inputs.copy_(images(5).sign())  # −1, 0 and 1
    inside = model.over_latents.components()[1].mean
    inside.sum().backward()
    assert (model.over_latents.inputs.grad.flatten(1).abs().sum(1) > 0).all()
    with torch.no_grad():
        model.over_latents.inputs.mul_(7.0)
    assert torch.equal(model.over_latents.components()[1].mean, inside)


def test_a_copy_of_a_model_asks_its_own_encoder():
    model = vae(prior="vampprior")
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in twin.encoder.parameters():
            p.zero_()
    assert not twin.over_latents.components()[1].mean.any() and model.over_latents.components()[1].mean.any()


# ------------------------------------------------------------------------------------------------------ every combination

COMBINATIONS = [
    (name, nets, classes, objective, ("logistic", "logistic-mixture", "gaussian")[(i + j) % 3])
    for i, name in enumerate(PRIORS)
    for j, (nets, classes, objective) in enumerate(
        [("mlp", False, "elbo"), ("mlp", True, "iwae"), ("conv", True, "elbo"), ("conv", False, "iwae")]
    )
]


@pytest.mark.parametrize(("name", "nets", "classes", "objective", "likelihood"), COMBINATIONS)
def test_priors_networks_classes_objectives_and_decoders_combine(name, nets, classes, objective, likelihood):
    settings = {"prior": name, "classes": classes, "objective": objective, "draws": 2, "likelihood": likelihood}
    model = vae(**settings, **(CONV if nets == "conv" else MLP))
    x, label = images(6), torch.arange(6)
    told = {"label": label} if classes else {}
    losses = model.loss({"x": x, "label": label}, turn(6))
    losses["loss"].backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    model.eval()
    with torch.no_grad():
        z = model.prior(6, Rng.rows(range(6)), **told)
        assert model.decode(z, **told).shape == x.shape and model.reconstruct(x, **told).abs().max() <= 1
        for samples in (1, 3):
            whole = model.log_prob(x, Rng.rows(range(6)), samples, **told)
            row = {key: value[4:5] for key, value in told.items()}
            part = model.log_prob(x[4:5], Rng.rows([4]), samples, **row)
            torch.testing.assert_close(whole[4:5], part, rtol=1e-5, atol=1e-4)
            assert whole.dtype == torch.float64 and torch.isfinite(whole).all()
    assert isinstance(model, Autoencoder) == (not classes)


def test_every_pair_of_choices_is_among_the_combinations():
    for a, b in itertools.combinations(range(4), 2):
        values = [sorted({row[i] for row in COMBINATIONS}, key=str) for i in (a, b)]
        assert set(itertools.product(*values)) == {(row[a], row[b]) for row in COMBINATIONS}


def test_an_unknown_prior_is_refused():
    with pytest.raises(GencliError, match="prior is 'vampire'") as caught:
        vae(prior="vampire")
    assert "vampprior" in caught.value.hint
