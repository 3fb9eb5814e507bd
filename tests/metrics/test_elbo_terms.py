"""The terms of the ELBO against quadrature: rate, distortion, surgery, active units, bounds in nats."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from gencli import registry
from gencli.bundle import Run
from gencli.core import Field, Rng, Spec
from gencli.errors import GencliError
from gencli.metrics._posterior import aggregated
from gencli.models.vae.vae import VAE
from gencli.nn.gaussian import DiagonalGaussian

N, GRID = 300, torch.linspace(-8, 8, 6001, dtype=torch.float64)


class Points:
    def __init__(self, n=N):
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(n, 3, generator=g, dtype=torch.float64)
        self.x[:, 1] += self.x[:, 0]

    def __len__(self):
        return len(self.x)

    def batch(self, indices):
        return {"x": self.x[indices]}


def run_of(dim=1, **settings):
    spec = Spec(Field("points", (3,)))
    torch.manual_seed(0)
    net = {"name": "mlp", "width": 8, "layers": 1}
    table = {"dim": dim, "likelihood": "gaussian", "scale": 0.8, "encoder": net, "decoder": net, **settings}
    model = VAE.make(table, spec)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 0.5)
    with torch.no_grad():
        model.encoder.body[-1].weight[dim:] *= 0.3  # no posterior is too narrow for the grid
        model.encoder.body[-1].bias[dim:] = -1.0
    return Run(model.double().eval().requires_grad_(False), [], spec, spec)


def measured(name, run, data=None, n=None, batch_size=64, **settings):
    made = registry.load("metrics", name).make(settings)(run, data or Points(), Rng.batch("t", total=1), n, batch_size)
    return {v.name: v for v in (made if isinstance(made, list) else [made])}


def by_quadrature(run, data):
    """Reconstruction, index-code information and marginal KL of a model with one number in its latent."""
    q = run.model.posterior(data.x)
    own = torch.distributions.Normal(q.mean, (0.5 * q.log_var).exp()).log_prob(GRID)  # (N, grid)
    step = GRID[1] - GRID[0]
    weight = own.exp() * step
    whole = own.logsumexp(0) - math.log(len(own))
    prior = torch.distributions.Normal(0.0, 1.0).log_prob(GRID)
    seen = run.model.decoder(GRID[:, None])
    likely = torch.distributions.Normal(seen, 0.8).log_prob(data.x[:, None]).sum(-1)
    assert weight.sum(1) == pytest.approx(1, abs=1e-6)
    return (weight * likely).sum(1), (weight * (own - whole)).sum(1), (weight * (whole - prior)).sum(1)


def error(value):
    return value.facts["standard_error"]


def test_surgery_is_what_quadrature_gives_and_its_parts_are_the_elbo():
    run, data = run_of(), Points()
    expected = [float(part.mean()) for part in by_quadrature(run, data)]
    made = measured("elbo-surgery", run)
    parts = [made[name] for name in ("average-reconstruction", "index-code-mi", "marginal-kl")]
    for value, truth in zip(parts, expected, strict=True):
        assert abs(value.value - truth) < 4 * error(value), (value.name, value.value, truth)
    assert error(parts[1]) < 0.1 * expected[1] and expected[1] > 0.5  # the bounds above say something
    assert parts[0].value - parts[1].value - parts[2].value == pytest.approx(made["elbo"].value, abs=1e-9)
    assert 0 < parts[1].value < math.log(N) and "log 300 = 5.70" in parts[1].note
    # a term left out or of the wrong sign is seen
    assert abs(parts[0].value + parts[1].value + parts[2].value - made["elbo"].value) > 1


def test_rate_and_distortion_are_the_elbo_and_the_closed_form():
    run, data = run_of(dim=3), Points()
    made = measured("rate-distortion", run)
    q = run.model.posterior(data.x)
    assert made["rate"].value == pytest.approx(float(q.kl().mean()), abs=1e-9)
    assert made["rate"].facts["kl_per_dimension"] == pytest.approx(q.kl_each().mean(0).tolist(), abs=1e-6)
    whole = measured("elbo-surgery", run)
    for name in ("rate", "distortion"):
        assert made[name].interval[0] < made[name].value < made[name].interval[1]
    assert -made["rate"].value - made["distortion"].value == pytest.approx(whole["elbo"].value, abs=1e-9)
    assert whole["index-code-mi"].value + whole["marginal-kl"].value == pytest.approx(made["rate"].value, abs=1e-9)
    one = run_of()
    truth, inside, outside = (float(part.mean()) for part in by_quadrature(one, data))
    made = measured("rate-distortion", one)
    assert abs(-made["distortion"].value - truth) < 4 * error(made["distortion"])
    assert made["rate"].value == pytest.approx(inside + outside, abs=1e-6)


def test_another_prior_is_judged_by_draws():
    run = run_of(prior="mixture", components=2)
    assert measured("rate-distortion", run)["rate"].facts["closed_form"] is False
    q = run.model.posterior(Points().x)
    own = torch.distributions.Normal(q.mean, (0.5 * q.log_var).exp()).log_prob(GRID)
    prior = run.model.log_prior(GRID[:, None])
    each = (own.exp() * (own - prior)).sum(1) * (GRID[1] - GRID[0])
    rate = measured("rate-distortion", run)["rate"]
    assert abs(rate.value - float(each.mean())) < 4 * error(rate) and error(rate) < 0.2 * rate.value
    assert "kl_per_dimension" not in rate.facts
    made = measured("elbo-surgery", run)
    assert made["average-reconstruction"].value - made["index-code-mi"].value - made[
        "marginal-kl"
    ].value == pytest.approx(made["elbo"].value, abs=1e-9)


def test_the_aggregated_posterior_is_the_mixture():
    g = torch.Generator().manual_seed(0)
    mean, log_var, z = (torch.randn(50, 4, generator=g, dtype=torch.float64) * s for s in (3, 2, 4))
    direct = torch.distributions.Normal(mean, (0.5 * log_var).exp()).log_prob(z[:, None]).sum(-1).logsumexp(
        1
    ) - math.log(50)
    torch.testing.assert_close(aggregated(z, DiagonalGaussian(mean, log_var)), direct, rtol=0, atol=1e-9)


def test_few_items_are_all_told_apart_and_the_note_says_so():
    run = run_of(dim=3)
    with torch.no_grad():
        run.model.encoder.body[-1].bias[3:] = -30.0  # no noise: every code names its item
    made = measured("elbo-surgery", run, n=50)["index-code-mi"]
    assert made.value == pytest.approx(math.log(50), abs=1e-6) and made.note.endswith(
        "raise -n to tell it from the marginal KL"
    )


def test_active_units_are_those_whose_mean_moves():
    run, data = run_of(dim=4), Points()
    with torch.no_grad():
        run.model.encoder.body[-1].weight[1] = 0.0
        run.model.encoder.body[-1].weight[2] *= 1e-2
    means = run.model.posterior(data.x).mean
    value = measured("active-units", run)["active-units"]
    assert value.value == 2 and value.unit == "of 4"
    assert value.facts["activity"] == pytest.approx(means.var(0).tolist(), abs=1e-6)
    assert measured("active-units", run, least=1e-5)["active-units"].value == 3


def test_bounds_are_in_nats_and_in_bits_and_rise_with_the_draws():
    run = run_of(dim=2)
    one, many = measured("elbo", run), measured("elbo", run, samples=50)
    assert set(one) == {"elbo", "bpd"} and set(many) == {"iwae-50", "bpd"}
    for made, name in ((one, "elbo"), (many, "iwae-50")):
        assert made[name].value == pytest.approx(-made["bpd"].value * 3 * math.log(2))
        assert made[name].interval[0] < made[name].value < made[name].interval[1]
        assert error(made[name]) == pytest.approx(error(made["bpd"]) * 3 * math.log(2))
    assert one["elbo"].value < many["iwae-50"].value and one["elbo"].better == "higher"


@pytest.mark.parametrize("name", ["rate-distortion", "elbo-surgery"])
def test_the_batch_size_changes_nothing(name):
    run = run_of(dim=2)
    made = [measured(name, run, Points(60), batch_size=size) for size in (64, 7)]
    for key in made[0]:
        assert made[0][key].value == pytest.approx(made[1][key].value, abs=1e-12)


def test_models_without_a_posterior_are_refused():
    run = run_of()
    run.model.gaussian = False
    with pytest.raises(GencliError, match="is no Gaussian"):
        measured("elbo-surgery", run)
    spec = Spec(Field("points", (2,)))
    with pytest.raises(GencliError, match="Posterior"):
        measured("rate-distortion", Run(nn.Linear(2, 2), [], spec, spec))
    assert np.isfinite(measured("rate-distortion", run)["rate"].value)
