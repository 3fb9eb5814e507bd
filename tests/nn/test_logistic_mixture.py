"""The discretised logistic mixture: its sums, its chain rule, and an independent evaluation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from gencli.nn.logistic_mixture import LogisticMixture, numbers

K = 5


def raw(channels: int, n: int = 40, spread: float = 1.5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers of mixtures; half of them with very small scales and places beyond the ends."""
    made = torch.randn(n, numbers(channels), K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made[: n // 2, 1 + channels : 1 + 2 * channels] -= 5
    return (made * spread).flatten(1).to(dtype)


def independent(numbers_: Tensor, x: Tensor, vocab: int) -> float:
    """log P of one pixel in float64, from the differences of σ as the paper writes them, one component at a time."""
    parts = numbers_.double().numpy().reshape(-1, K)
    channels, half = len(x), 1 / (vocab - 1)
    v = x.double().numpy() / (vocab - 1) * 2 - 1
    weights = np.exp(parts[0] - parts[0].max()) / np.exp(parts[0] - parts[0].max()).sum()
    total = 0.0
    for k in range(K):
        mass, coupling = weights[k], iter(np.tanh(parts[1 + 2 * channels :, k]))
        for c in range(channels):
            mean = parts[1 + c, k] + sum(next(coupling) * v[b] for b in range(c))
            scale = math.exp(max(parts[1 + channels + c, k], -7.0))
            ends = [(v[c] - half - mean) / scale, (v[c] + half - mean) / scale]
            if sum(ends) > 0:  # σ(b) − σ(a) = σ(−a) − σ(−b): the small ones keep their digits
                ends = [-ends[1], -ends[0]]
                first, last = x[c] == vocab - 1, x[c] == 0
            else:
                first, last = x[c] == 0, x[c] == vocab - 1
            above = 1.0 if last else 1 / (1 + math.exp(-ends[1]))
            below = 0.0 if first else 1 / (1 + math.exp(-ends[0]))
            mass *= above - below
        total += mass
    return math.log(total)


@pytest.mark.parametrize(("channels", "per"), [(1, 3), (2, 6), (3, 10)])
def test_a_component_has_as_many_numbers_as_in_the_paper(channels: int, per: int) -> None:
    assert numbers(channels) == per


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("vocab", [2, 17, 256])
def test_it_agrees_with_an_independent_evaluation_in_float64(channels: int, vocab: int) -> None:
    made = raw(channels, spread=0.6, dtype=torch.float64)
    x = torch.randint(vocab, (len(made), channels), generator=torch.Generator().manual_seed(1))
    x[:4], x[4:8] = 0, vocab - 1
    mine = LogisticMixture.of(made, channels, vocab).log_prob(x)
    theirs = torch.tensor(
        [independent(row, pixel, vocab) for row, pixel in zip(made, x, strict=True)], dtype=torch.float64
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_256_bins_of_every_channel_sum_to_one_in_single_precision(channels: int) -> None:
    mixture = LogisticMixture.of(raw(channels, n=400, spread=2.0), channels, 256)
    assert float(mixture.log_scales.min()) == -7.0, "the smallest scale is among them"
    x = torch.randint(256, (400, channels), generator=torch.Generator().manual_seed(2))
    for channel in range(channels):
        logits = mixture.logits(x[:, :channel])
        assert logits.dtype == torch.float32 and torch.isfinite(logits).all()
        sums = logits.double().exp().sum(-1)
        assert float((sums - 1).abs().max()) < 1e-6
        assert float(logits.min()) < -50, "and masses that no difference of sigmoids can show"


@pytest.mark.parametrize("channels", [1, 3])
def test_the_chain_rule_over_channels_is_the_mixture_itself(channels: int) -> None:
    made = raw(channels, dtype=torch.float64).unflatten(0, (2, 4, 5))
    mixture = LogisticMixture.of(made, channels, 16)
    x = torch.randint(16, (2, 4, 5, channels), generator=torch.Generator().manual_seed(3))
    chain = sum(
        mixture.logits(x[..., :c]).log_softmax(-1).gather(-1, x[..., c, None]).squeeze(-1) for c in range(channels)
    )
    torch.testing.assert_close(chain, mixture.log_prob(x), rtol=1e-10, atol=1e-10)


def test_whole_colours_sum_to_one() -> None:
    mixture = LogisticMixture.of(raw(3, n=6, dtype=torch.float64)[:, None], 3, 4)
    colours = torch.tensor(list(itertools.product(range(4), repeat=3)))
    sums = mixture.log_prob(colours).exp().sum(1)
    torch.testing.assert_close(sums, torch.ones_like(sums), rtol=0, atol=1e-12)


def test_single_precision_is_as_exact_as_a_mean_is_known_and_so_are_gradients() -> None:
    made = raw(3, n=200, spread=1.0)
    x = torch.randint(256, (200, 3), generator=torch.Generator().manual_seed(4))
    found = []
    for dtype in (torch.float32, torch.float64):
        given = made.to(dtype).requires_grad_()
        log = LogisticMixture.of(given, 3, 256).log_prob(x)
        (grad,) = torch.autograd.grad(log.sum(), given)
        assert torch.isfinite(log).all() and torch.isfinite(grad).all()
        found.append((log.detach().double(), grad.double()))
    (log, grad), (exact, true_grad) = found
    # a mean is known to 1e-7 of the range; a scale of e^−7 turns that into 1e-4 nats a channel
    assert float(((log - exact).abs() / (1 + exact.abs())).max()) < 1e-4
    assert float(((grad - true_grad).abs() / (1 + true_grad.abs())).max()) < 2e-3
    wide = (made.view(-1, 10, K)[:, 4:7].amin((1, 2)) > -3) & (exact > -60)
    assert wide.sum() > 5 and float((log - exact)[wide].abs().max()) < 1e-5


def test_the_couplings_make_green_follow_red() -> None:
    made = torch.zeros(1, 10, 1)
    made[:, 4:7] = -4.0  # narrow
    made[:, 7] = 20.0  # tanh = 1: green's mean is red's value
    mixture = LogisticMixture.of(made.flatten(1), 3, 256)
    for red in (20, 200):
        seen = torch.tensor([[red]])
        assert int(mixture.logits(seen).argmax()) == red
        assert int(mixture.logits(torch.tensor([[red, 7]])).argmax()) in (127, 128), "blue is not coupled"
