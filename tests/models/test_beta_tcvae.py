"""β-TCVAE: the parts add up whatever the estimator, estimators against the sum over all items, and what β does."""

import itertools
import math

import pytest
import torch
from tiny import opened, smoke, trainer

from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.beta_tcvae import BetaTCVAE, aggregated, log_weights
from gencli.models.vae.vae import VAE
from gencli.nn.gaussian import DiagonalGaussian, standard_normal

IMAGES = Spec(Field("image", (1, 8, 8), vocab=17, range=(-1.0, 1.0)))
SPRITES = Spec(Field("image", (1, 64, 64), vocab=2, range=(0.0, 1.0)))
NETS = {"encoder": {"name": "mlp", "width": 16}, "decoder": {"name": "mlp", "width": 16}}
ESTIMATORS = ("weighted", "stratified")


def made(kind=BetaTCVAE, items=1000, **settings):
    torch.manual_seed(0)
    model = kind.make({"dim": 4, **NETS, **settings}, IMAGES)
    if kind is BetaTCVAE:
        model.initialise(iter(()), items, Rng.batch("i", total=1))
    return model


def images(n):
    return torch.randint(17, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0)) / 8.0 - 1


def turn(n, key=0):
    return Turn("main", 0, 100, Rng.batch("tc", key, total=n))


def codes(n, dim=3, seed=0):
    """Posteriors of n items and a draw of each."""
    g = torch.Generator().manual_seed(seed)
    mean, log_var, noise = torch.randn(3, n, dim, generator=g, dtype=torch.float64)
    mean[:, 1] = mean[:, 0] + 0.3 * mean[:, 1]  # numbers that depend on each other
    q = DiagonalGaussian(2 * mean, log_var - 1)
    return q, q.draw(noise)


def parts(logs):
    return logs.given - logs.joint, logs.joint - logs.marginals, logs.marginals - logs.prior


# ------------------------------------------------------------------------------------------------------- adding up


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("items", [12, 50_000])
def test_weights_of_one_leave_the_log_ratio_of_each_draw(estimator, items):
    q, z = codes(12)
    total = sum(parts(aggregated(q, z, items, estimator)))
    exact = q.log_prob(z) - standard_normal(z)
    assert (total - exact).abs().max() < 1e-9
    lost = sum(w * part for w, part in zip((1.0, 1.1, 1.0), parts(aggregated(q, z, items, estimator)), strict=True))
    assert (lost - exact).abs().max() > 1e-2


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_loss_with_weights_of_one_is_vaes_by_a_draw(estimator):
    x = images(8)
    model = made(beta=1.0, estimator=estimator)
    losses = model.loss({"x": x}, turn(8))
    q = model.posterior(x)
    z = q.draw(turn(8).rng.at("posterior").normal(q.mean.shape))
    vae = made(VAE).loss({"x": x}, turn(8))
    each = vae["each"] - q.kl() + q.log_prob(z) - standard_normal(z)
    torch.testing.assert_close(losses["each"], each, rtol=1e-6, atol=1e-4)
    torch.testing.assert_close(losses["mi"] + losses["tc"] + losses["dimwise"], (each - vae["each"] + q.kl()).mean())
    assert torch.equal(losses["kl"], vae["kl"]) and torch.equal(losses["bits_per_dim"], vae["bits_per_dim"])
    weighed = made(alpha=0.5, beta=3.0, gamma=2.0, estimator=estimator).loss({"x": x}, turn(8))
    expected = losses["recon"] + 0.5 * losses["mi"] + 3 * losses["tc"] + 2 * losses["dimwise"]
    torch.testing.assert_close(weighed["loss"], expected)


# ------------------------------------------------------------------------------------------------------------ estimators


def exact_logs(q, z):
    """log q(z) and log Π q(z_j) over all items, as sums."""
    each = torch.distributions.Normal(q.mean, (0.5 * q.log_var).exp()).log_prob(z[:, None])  # (draws, items, dim)
    return each.sum(2).exp().mean(1).log(), each.exp().mean(1).log().sum(1)


def test_a_batch_of_all_items_gives_the_aggregated_posterior_exactly():
    q, z = codes(40)
    joint, marginals = exact_logs(q, z)
    logs = aggregated(q, z, 40, "stratified")
    torch.testing.assert_close(logs.joint, joint)
    torch.testing.assert_close(logs.marginals, marginals)
    wrong = aggregated(q, z, 40, "weighted")  # divides by N M: too little by log M in each of its sums
    torch.testing.assert_close(wrong.joint, joint - math.log(40))
    torch.testing.assert_close(wrong.marginals, marginals - 3 * math.log(40))


def test_stratified_estimates_of_the_density_have_no_bias_and_weighted_ones_are_too_small():
    """For every item and all batches of three that hold it, in turn: the mean over batches is q(z) itself."""
    n = 7
    q, z = codes(n)
    joint, _ = exact_logs(q, z)
    found = {name: torch.zeros(n, dtype=torch.float64) for name in ESTIMATORS}
    batches = list(itertools.combinations(range(n), 3))
    share = sum(0 in batch for batch in batches)
    for batch in batches:
        rows = torch.tensor(batch)
        some = DiagonalGaussian(q.mean[rows], q.log_var[rows])
        for name in ESTIMATORS:
            found[name][rows] += aggregated(some, z[rows], n, name).joint.exp() / share
    torch.testing.assert_close(found["stratified"], joint.exp())
    mean_log = found["weighted"].log()
    assert (mean_log - joint).abs().max() > 0.1, "a control that is biased here"


def test_weights_stand_on_the_diagonal_and_do_not_know_the_order():
    weights = log_weights(5, 100, "stratified").exp()
    torch.testing.assert_close(weights.diagonal(), torch.full((5,), 1 / 100))
    torch.testing.assert_close(weights.sum(1), torch.ones(5))
    paper = torch.full((5,), 1 / 4)  # of one row: the item, three of the others, and the last
    paper[0], paper[-1] = 1 / 100, (100 - 4) / (100 * 4)
    torch.testing.assert_close(weights[0, 1:].sum(), paper[1:].sum())
    torch.testing.assert_close(weights[0, 1], paper[1:].mean())
    q, z = codes(6)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    turned = aggregated(DiagonalGaussian(q.mean[order], q.log_var[order]), z[order], 100, "stratified")
    for a, b in zip(turned, aggregated(q, z, 100, "stratified"), strict=True):
        torch.testing.assert_close(a, b[order])


def test_independent_numbers_have_no_total_correlation():
    n = 400
    g = torch.Generator().manual_seed(0)
    free = torch.randn(n, 2, generator=g, dtype=torch.float64)
    bound = free[:, :1].expand(n, 2)
    found = []
    for mean in (free, bound):
        q = DiagonalGaussian(mean, torch.full_like(mean, math.log(0.3)))
        z = q.draw(torch.randn(n, 2, generator=g, dtype=torch.float64))
        found.append(float(parts(aggregated(q, z, n, "stratified"))[1].mean()))
    joint = torch.tensor([[1.3, 1.0], [1.0, 1.3]])
    exact = float(-0.5 * torch.logdet(joint) + math.log(1.3))
    assert abs(found[0]) < 0.05 and abs(found[1] - exact) < 0.1, (found, exact)


# ----------------------------------------------------------------------------------------------------------- training


def entangled(beta, steps):
    """Total correlation and information, per draw, of two latents that both began as the one number of x."""
    affine = {"encoder": {"name": "mlp", "layers": 0}, "decoder": {"name": "mlp", "layers": 0}}
    torch.manual_seed(0)
    settings = {"dim": 2, "beta": beta, "likelihood": "gaussian", "scale": 0.3, "estimator": "stratified", **affine}
    model = BetaTCVAE.make(settings, Spec(Field("points", (1,))))
    x = torch.randn(200, 1, generator=torch.Generator().manual_seed(0))
    model.initialise(iter(()), 200, Rng.batch("i", total=1))
    with torch.no_grad():
        model.encoder.body[0].weight.copy_(torch.tensor([[1.0], [0.9], [0.0], [0.0]]))
        model.encoder.body[0].bias.copy_(torch.tensor([0.0, 0.0, -2.0, -2.0]))
        model.decoder.body[0].weight.fill_(0.5)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        optimiser.zero_grad()
        model.loss({"x": x}, turn(200, step))["loss"].backward()
        optimiser.step()
    with torch.no_grad():
        shown = [model.loss({"x": x}, turn(200, ("test", i))) for i in range(10)]
    return [float(torch.stack([one[key] for one in shown]).mean()) for key in ("tc", "mi")]


def test_beta_makes_numbers_independent_that_were_not():
    start, slow, fast = entangled(1.0, 0), entangled(1.0, 100), entangled(10.0, 100)
    assert start[0] > 0.5 and slow[0] > 0.3 * start[0], "a control that is hardly moved by then"
    assert fast[0] < 0.1 * start[0] and fast[1] > 0.5, "and the code still tells of x"


def test_the_number_of_items_is_the_training_splits_and_stays_in_training():
    tables = smoke("beta-tcvae")
    model = trainer(tables).model
    assert int(model.items) == len(opened(tables["data"]).split("train"))
    assert "items" in model.state_dict() and "items" in model.training_only


def test_the_papers_networks_have_their_parameters():
    mlp = {"name": "mlp", "width": 1200}
    model = BetaTCVAE.make(
        {
            "dim": 10,
            "likelihood": "bernoulli",
            "encoder": {**mlp, "layers": 2, "activation": "relu"},
            "decoder": {**mlp, "layers": 3, "activation": "tanh"},
        },
        SPRITES,
    )
    assert sum(p.numel() for p in model.encoder.parameters()) == 6_402_120 - 20_500, (
        "the released class holds a convolution that it never uses"
    )
    assert sum(p.numel() for p in model.decoder.parameters()) == 7_814_896


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "iwae"}, "beta-tcvae weighs parts of a KL divergence, and the objective iwae has none"),
        ({"prior": "flow"}, "beta-tcvae needs a prior of independent numbers, flow is none"),
    ],
)
def test_what_has_no_parts_is_refused(settings, message):
    with pytest.raises(GencliError, match=message) as caught:
        made(**settings)
    assert caught.value.hint


def test_a_stratified_batch_of_one_is_refused():
    with pytest.raises(GencliError, match="needs batches of two items or more, got 1"):
        made(estimator="stratified").loss({"x": images(1)}, turn(1))
    assert torch.isfinite(made().loss({"x": images(1)}, turn(1))["loss"])
