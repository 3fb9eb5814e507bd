"""The Gumbel-softmax: its frequencies, its two limits, straight-through, and how temperatures fall."""

import math

import pytest
import torch

from gencli.nn.gumbel import annealed, gumbel, gumbel_softmax, kl_to_uniform


def uniform(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_largest_of_many_draws_is_as_frequent_as_its_probability():
    logits = torch.tensor([1.0, -0.5, 0.3, 2.0, -1.0]).double()
    draws = gumbel_softmax(logits.expand(400_000, -1), uniform(400_000, 5), 0.7).argmax(1)
    found = torch.bincount(draws, minlength=5) / 400_000
    assert (found - logits.softmax(0)).abs().max() < 0.003
    wrong = torch.bincount((logits + uniform(400_000, 5)).argmax(1), minlength=5) / 400_000
    assert (wrong - logits.softmax(0)).abs().max() > 0.03, "other noise is seen"


def test_noise_is_gumbels_and_finite_at_both_ends():
    noise = gumbel(uniform(400_000))
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.01) and float(noise.var()) == pytest.approx(
        math.pi**2 / 6, 0.01
    )
    assert torch.isfinite(gumbel(torch.tensor([0.0, 1 - 2**-24, 1 - 2**-53]))).all()


def test_a_cold_draw_is_one_hot_and_a_hot_one_uniform():
    logits, u = normal(64, 6, 3), uniform(64, 6, 3, seed=1)
    cold, hot = gumbel_softmax(logits, u, 1e-4), gumbel_softmax(logits, u, 1e6)
    torch.testing.assert_close(cold.max(1).values, torch.ones(64, 3).double(), rtol=0, atol=1e-2)
    torch.testing.assert_close(hot, torch.full_like(hot, 1 / 6), rtol=0, atol=1e-5)
    torch.testing.assert_close(gumbel_softmax(logits, u, 0.5).sum(1), torch.ones(64, 3).double())


def test_a_hard_draw_is_exactly_one_hot_with_the_soft_ones_gradient():
    grads = {}
    for hard in (True, False):
        logits = normal(8, 5, 2).requires_grad_()
        y = gumbel_softmax(logits, uniform(8, 5, 2), 0.5, hard)
        (y * normal(8, 5, 2, seed=2)).sum().backward()
        grads[hard] = logits.grad
        assert bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()) == hard
    assert torch.equal(grads[True], grads[False]) and grads[True].abs().min() > 0


def test_the_divergence_is_ln_k_less_the_entropy():
    logits = normal(4, 7, 3)
    entropy = torch.distributions.Categorical(logits=logits.movedim(1, -1)).entropy()
    torch.testing.assert_close(kl_to_uniform(logits), math.log(7) - entropy)
    torch.testing.assert_close(kl_to_uniform(torch.zeros(1, 7)), torch.zeros(1), rtol=0, atol=1e-6)


def test_annealing_is_half_a_cosine_then_the_end():
    assert annealed(1.0, 1 / 16, 150_000, 0) == 1.0 and annealed(1.0, 1 / 16, 150_000, 150_000) == 1 / 16
    assert annealed(1.0, 1 / 16, 150_000, 75_000) == pytest.approx(17 / 32)
    assert annealed(0.0, 6.6, 5000, 1250) == pytest.approx(6.6 * (1 - math.cos(math.pi / 4)) / 2)
    assert annealed(0.0, 6.6, 5000, 10**6) == annealed(0.0, 6.6, 0, 0) == 6.6
