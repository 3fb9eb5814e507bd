"""Divergences: estimates against closed forms, and the value that a perfect critic leaves."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gencli.errors import GencliError
from gencli.metrics._base import FeatureSet
from gencli.metrics._divergence import categorical_kl, js, kl
from gencli.metrics.kl import Kl


def draws(n, seed, d=2, shift=0.0, spread=1.0):
    return shift + spread * np.random.default_rng(seed).standard_normal((n, d))


def gaussian_kl(shift, spread, d=2, reverse=False):
    """Of N(0, I) from N(shift, spread² I), or the other way round."""
    ratio = spread**2 if reverse else spread**-2
    scale = 1.0 if reverse else spread**-2
    return d / 2 * (ratio + shift**2 * scale - 1 - np.log(ratio))


def integrated_js(shift, spread):
    """Of N(0, 1) and N(shift, spread²) in one dimension, by a fine grid."""
    x = np.linspace(-25, 25, 200_001)
    p, q = np.exp(-(x**2) / 2), np.exp(-((x - shift) ** 2) / (2 * spread**2)) / spread
    p, q = p / p.sum(), q / q.sum()
    half = (p + q) / 2
    terms = [v * np.log(np.where(v > 0, v, 1) / np.where(v > 0, half, 1)) for v in (p, q)]
    return float(sum(term.sum() for term in terms) / 2)


def test_the_closed_form_of_gaussians_is_that_of_a_million_draws():
    x = draws(1_000_000, 0, d=1)[:, 0]
    for shift, spread in ((0.5, 1.3), (1.0, 0.8)):
        gap = -(x**2) / 2 + (x - shift) ** 2 / (2 * spread**2) + np.log(spread)
        assert gap.mean() == pytest.approx(gaussian_kl(shift, spread, d=1), rel=0.01)
    assert gaussian_kl(0.5, 1.3, reverse=True) != pytest.approx(gaussian_kl(0.5, 1.3), rel=0.05)  # not symmetric


def estimates(n, shift, spread, k=1):
    """The mean over draws of both directions."""
    made = ((draws(n, 2 * s), draws(n, 2 * s + 1, 2, shift, spread)) for s in range(6))
    return np.mean([(kl(x, y, k), kl(y, x, k)) for x, y in made], 0)


@pytest.mark.parametrize(("shift", "tolerance"), [(0.0, 0.03), (0.5, 0.05), (0.7, 0.06)])
def test_neighbours_estimate_the_closed_form_of_shifted_gaussians(shift, tolerance):
    for k in (1, 3):
        assert estimates(2000, shift, 1.0, k) == pytest.approx([gaussian_kl(shift, 1.0)] * 2, abs=tolerance)


def test_the_direction_is_right_and_more_items_come_nearer():
    """Wider data than samples: the estimate is too low, the less the more items there are."""
    expected = gaussian_kl(0.0, 0.7), gaussian_kl(0.0, 0.7, reverse=True)
    few, many = estimates(300, 0.0, 0.7, 3), estimates(6000, 0.0, 0.7, 3)
    assert few[0] < many[0] < expected[0] and many == pytest.approx(expected, abs=0.09)
    assert abs(many[0] - expected[0]) < 0.6 * abs(few[0] - expected[0])
    assert estimates(6000, 0.0, 0.7, 1)[0] > many[0] > many[1]


@pytest.mark.parametrize(("shift", "spread"), [(0.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_neighbours_estimate_jensen_and_shannons_divergence(shift, spread):
    found = [js(draws(2000, 2 * s, 1), draws(2000, 2 * s + 1, 1, shift, spread), 1) for s in range(6)]
    assert np.mean(found) == pytest.approx(integrated_js(shift, spread), abs=0.02)


def test_no_estimate_exceeds_log_two_and_sets_that_do_not_meet_reach_it():
    assert js(draws(100, 0), 50 + draws(100, 1), 1) == pytest.approx(np.log(2), abs=1e-12)
    assert js(draws(100, 0), 1.5 + draws(100, 1), 1) < np.log(2)


def test_categories_have_the_sum_and_an_impossible_one_adds_nothing():
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.5, 0.25])
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log(q)
    assert categorical_kl(log_p, log_q) == pytest.approx(0.5 * np.log(2))
    assert categorical_kl(log_p, log_p) == 0 and categorical_kl(log_q, log_p) == np.inf


@pytest.mark.parametrize("equal", [True, False])
def test_the_best_critic_of_a_table_leaves_twice_the_divergence_less_log_four(equal):
    """Goodfellow et al., 2014: max_D E_p log D + E_q log(1 − D) = 2 JS(p ‖ q) − log 4, at D = p / (p + q)."""
    p, q = torch.softmax(torch.randn(2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64), 1)
    q = p if equal else q
    logits = torch.full((6,), 1.7, dtype=torch.float64, requires_grad=True)
    steps = torch.optim.LBFGS([logits], lr=1, max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def loss():
        steps.zero_grad()
        made = (p * F.softplus(-logits) + q * F.softplus(logits)).sum()
        made.backward()
        return made

    for _ in range(5):
        steps.step(loss)
    log_p, log_q, log_m = (v.log().numpy() for v in (p, q, (p + q) / 2))
    divergence = (categorical_kl(log_p, log_m) + categorical_kl(log_q, log_m)) / 2
    best = -loss().item()
    assert best == pytest.approx(2 * divergence - np.log(4), abs=1e-6)
    assert torch.allclose(torch.sigmoid(logits), p / (p + q), atol=1e-5)
    assert best == pytest.approx(-1.386294, abs=1e-6) if equal else best > -1.3862 + 1e-3


def test_the_three_values_have_names_units_and_intervals_that_contain_them():
    real, fake = (FeatureSet(x, "points") for x in (draws(300, 0), draws(200, 1, shift=0.5)))
    made = Kl.make()(real, fake)
    assert [v.name for v in made] == ["kl[points]", "reverse-kl[points]", "js[points]"]
    assert all(v.interval[0] <= v.value <= v.interval[1] and v.unit == "nats" and v.n == 200 for v in made)
    assert made == Kl.make()(real, fake)


def test_items_that_coincide_have_no_density():
    with pytest.raises(GencliError, match="100 of 100 items coincide with 1"):
        Kl.make()(FeatureSet(draws(100, 0), "points"), FeatureSet(np.ones((100, 2)), "points"))
