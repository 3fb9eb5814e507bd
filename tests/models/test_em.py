"""EM: scikit-learn's mixture from the same start, what no iteration may lower, parameters found again, a bound that closes."""

import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as Theirs
from tiny import bare, hashes, of_run, resumed, smoke, trained
from torch.distributions import MultivariateNormal

from gencli.config import merge, parse
from gencli.core import Field, LatentVariable, Likelihood, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae.em import GaussianMixture
from gencli.training.settings import TrainConfig

SPEC = Spec(Field("points", (2,)))
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
MEANS = torch.tensor([[-2.0, 0.0], [1.5, 1.5], [1.0, -2.0]], dtype=torch.float64)
COVARIANCES = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, -0.1], [-0.1, 0.4]], [[0.1, 0.0], [0.0, 0.5]]]).double()


class Items:
    """Points of a known mixture, encoded already."""

    encoded = True

    def __init__(self, n, seed=0):
        g = torch.Generator().manual_seed(seed)
        self.which = torch.multinomial(WEIGHTS, n, replacement=True, generator=g)
        noise = torch.randn(n, 2, 1, generator=g, dtype=torch.float64)
        self.x = MEANS[self.which] + (torch.linalg.cholesky(COVARIANCES)[self.which] @ noise).squeeze(2)

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return {"x": self.x[indices]}


def fitting(items, batch_size, lr=0.02, **settings):
    """A trainer of a mixture in float64, its first parameters found."""
    torch.manual_seed(0)
    model = GaussianMixture.make({"components": 3, **settings}, SPEC).double()
    train = parse(TrainConfig, {"batch_size": batch_size, "ema": 0, "lr": lr, "steps": 10_000}, "train")
    return of_run(bare(model), items, train)


def turn(n):
    return Turn("expectation", 0, 10, Rng.batch("em", total=n))


# ------------------------------------------------------------------------------------------------------ the same as another


@pytest.mark.parametrize("covariance", ["full", "diag"])
@pytest.mark.parametrize("batch_size", [90, 40])
def test_iterations_are_those_of_scikit_learn_however_the_data_are_cut_into_batches(covariance, batch_size):
    items, iterations = Items(90), 7
    one = fitting(items, batch_size, covariance=covariance, start="points", starts=1)
    start = [value.clone().numpy() for value in (one.model.weights, one.model.means, one.model.covariances)]
    precisions = np.linalg.inv(start[2]) if covariance == "full" else 1 / start[2]
    theirs = Theirs(3, covariance_type=covariance, tol=0, reg_covar=0, max_iter=iterations, means_init=start[1])
    theirs.set_params(weights_init=start[0] / start[0].sum(), precisions_init=precisions)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        theirs.fit(items.x.numpy())
    for _ in range(math.ceil(90 * iterations / batch_size)):
        one.take_step()
    for ours, other in zip(
        (one.model.weights, one.model.means, one.model.covariances),
        (theirs.weights_, theirs.means_, theirs.covariances_),
        strict=True,
    ):
        np.testing.assert_allclose(ours.numpy(), other, rtol=1e-9, atol=1e-11)
    found = one.model.log_prob(items.x, Rng.batch(total=90))
    np.testing.assert_allclose(found.numpy(), theirs.score_samples(items.x.numpy()), rtol=1e-9)
    assert np.abs(start[1] - theirs.means_).max() > 0.1, "the start is not the end"


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_no_iteration_lowers_the_likelihood_and_each_e_step_closes_the_bound(covariance):
    for n, floor in ((300, 1e-4), (12, 1e-2)):  # the second has so few items that components collapse onto the floor
        items = Items(n, seed=1)
        one = fitting(items, n, covariance=covariance, start="points", starts=1, floor=floor, components=4)
        shown = [one.take_step().losses for _ in range(40)]
        log_p = torch.stack([losses["log_p"] for losses in shown])
        assert (log_p.diff() > -1e-12).all() and log_p[-1] > log_p[0] + 0.1
        x, rng = items.x, Rng.batch(total=n)
        losses = one.model.loss({"x": x}, turn(n))
        assert (-losses["each"] - one.model.log_prob(x, rng)).abs().max() < 1e-8
        if n == 12:
            least = torch.linalg.eigvalsh(one.model.covariances) if one.model.full else one.model.covariances
            assert float(least.min()) == pytest.approx(floor, rel=1e-6)
    late = one.model.log_posterior(x, one.model.joint(x))
    one.model.means.zero_()
    joint = one.model.joint(x)
    assert (joint.logsumexp(1) - (late.exp() * (joint - late)).sum(1)).max() > 1e-3, (
        "a posterior of other parameters does not"
    )


def test_means_and_weights_are_recovered_within_three_standard_errors():
    items = Items(3000, seed=2)
    one = fitting(items, 1000)
    start = one.model.means.clone()
    for _ in range(45):
        one.take_step()
    model = one.model
    order = torch.cdist(MEANS, model.means).argmin(1)
    assert len(set(order.tolist())) == 3
    counts = 3000 * WEIGHTS
    errors = (COVARIANCES.diagonal(dim1=1, dim2=2) / counts[:, None]).sqrt()
    assert ((model.means[order] - MEANS).abs() / errors).max() < 3
    assert ((model.weights[order] - WEIGHTS).abs() / (WEIGHTS * (1 - WEIGHTS) / 3000).sqrt()).max() < 3
    assert ((start[order] - MEANS).abs() / errors).max() > 3, "the start is not as near"


# ------------------------------------------------------------------------------------------------------------ the amortised


def test_the_elbo_of_a_network_rises_until_it_touches_log_p():
    items, net = Items(200), {"name": "mlp", "width": 32, "activation": "gelu"}
    one = fitting(items, 100, inference="amortised", passes=10, net=net)
    shown = [one.take_step().losses for _ in range(240)]
    gaps = [float(losses["log_p"] - losses["elbo"]) for losses in shown]
    assert min(gaps) > 0, "the ELBO is below log p"
    assert gaps[0] > 1 and np.mean(gaps[-20:]) < 0.03, (gaps[0], np.mean(gaps[-20:]))
    exact = fitting(items, 200)
    for _ in range(20):
        exact.take_step()
    ours, best = (float(each.model.log_prob(items.x, Rng.batch(total=200)).mean()) for each in (one, exact))
    assert best - 0.01 < ours <= best + 1e-3
    idle = fitting(items, 100, lr=0.0, inference="amortised", net=net)
    for parameter in idle.model.net.parameters():
        parameter.detach().zero_()
    for _ in range(2):
        idle.take_step()
    assert idle.model.means.std(0).max() < 1e-9, (
        "an M-step for the q of an untrained network makes all components alike"
    )


# ---------------------------------------------------------------------------------------------------- one model as any other


def test_resuming_in_the_middle_of_an_iteration_changes_nothing(tmp_path):
    for name in ("em", "em-amortised"):
        tables = merge(smoke(name), {"train": {"steps": 8, "save_every": 8, "schedule": "constant"}})
        whole = trained(tmp_path / "whole" / name, tables)
        part = trained(tmp_path / "part" / name, merge(tables, {"train": {"steps": 4, "save_every": 4}}))
        resumed(part, steps=8, save_every=8)
        assert hashes(part) == hashes(whole)


@pytest.mark.parametrize("covariance", ["full", "diag"])
def test_samples_have_the_mixtures_moments_and_each_its_own_seed(covariance):
    one = fitting(Items(300), 300, covariance=covariance)
    for _ in range(10):
        one.take_step()
    model = one.model.eval()
    assert isinstance(model, LatentVariable) and isinstance(model, Likelihood)
    n = 40_000
    x = model.decode(model.prior(n, Rng.batch("samples", total=n)))
    whole = model.covariances if model.full else torch.diag_embed(model.covariances)
    mean = model.weights @ model.means
    apart = model.means - mean
    covariance = (model.weights[:, None, None] * (whole + apart[:, :, None] * apart[:, None])).sum(0)
    assert (x.mean(0) - mean).abs().max() < 0.03 and (x.T.cov() - covariance).abs().max() < 0.06
    nearest = torch.cdist(x, model.means).argmin(1).bincount(minlength=3) / n
    assert (nearest - model.weights).abs().max() < 0.02
    entropy = -model.log_prob(x, Rng.batch(total=n)).mean()
    assert float(entropy) < float(MultivariateNormal(mean, covariance).entropy()) - 0.3, (
        "a Gaussian of these moments is wider"
    )
    three, two = (model.decode(model.prior(k, Rng.rows(range(k)))) for k in (3, 2))
    assert torch.equal(three[:2], two)
    still = model.decode(torch.zeros(1, 5, dtype=torch.float64))
    torch.testing.assert_close(still[0], model.means[model.weights.argmax()])


def test_the_best_of_several_starts_is_kept_and_more_components_than_items_are_refused():
    items = Items(300)

    def apart(**settings):
        means = fitting(items, 100, **settings).model.means
        assert (torch.cdist(means, items.x).min(1).values < 1e-12).all(), "each is an item"
        return float(torch.cdist(items.x, means).min(1).values.square().sum())

    assert apart(start="points", starts=20) < apart(start="points", starts=1)
    assert apart(starts=8) < 0.8 * apart(start="points", starts=1)
    with pytest.raises(GencliError, match="em has 7 components and the data 6 items"):
        fitting(Items(6), 6, components=7)
    with pytest.raises(GencliError, match=r"got whole numbers \(codes of 8 values\)"):
        GaussianMixture.make({}, Spec(Field("codes", (4, 4), vocab=8)))


def test_a_component_without_items_stays_and_the_others_go_on():
    items = Items(200)
    one = fitting(items, 200)
    one.model.means[1] = 1e6
    for _ in range(3):
        one.take_step()
    assert one.model.weights[1] == 0 and (one.model.means[1] == 1e6).all()
    assert torch.isfinite(one.model.log_prob(items.x, Rng.batch(total=200))).all()
