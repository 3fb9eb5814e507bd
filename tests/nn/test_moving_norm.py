"""Batch normalisation with statistics that are applied once a step."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from gencli import core
from gencli.nn.moving_norm import EPSILON, MovingNorm, ShiftedNorm, settle


def some(n: int = 16, seed: int = 0) -> torch.Tensor:
    x = torch.randn(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * torch.tensor([1.0, 2.0, 0.5]).view(3, 1, 1) + torch.tensor([0.0, 5.0, -1.0]).view(3, 1, 1)


def test_without_lag_it_is_batch_normalisation() -> None:
    mine, theirs = ShiftedNorm(3).double(), nn.BatchNorm2d(3, eps=EPSILON).double()
    with torch.no_grad():
        mine.bias.copy_(theirs.bias.normal_(generator=torch.Generator().manual_seed(1)))
    x = some()
    torch.testing.assert_close(mine(x), theirs(x))
    mean, var = MovingNorm(3).double().moments(x)
    torch.testing.assert_close((x - mean) / var.sqrt() + mine.bias.view(3, 1, 1), theirs(x))
    mine.eval()
    settle(mine)
    assert mine.mean.abs().max() > 1, "the first step's statistics are taken whole"
    torch.testing.assert_close(mine.mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(mine.var, x.var((0, 2, 3)))


def test_two_micro_batches_are_averaged_into_one_step() -> None:
    norm = MovingNorm(3).double()
    for step, seeds in enumerate([(0, 1), (2, 3)]):
        before = norm.mean.clone()
        for seed in seeds:
            norm.moments(some(seed=seed))
        assert torch.equal(norm.mean, before), "nothing moves before the step is done"
        settle(norm)
        assert int(norm.steps) == step + 1
    every = torch.stack([some(seed=seed).mean((0, 2, 3)) for seed in range(4)])
    torch.testing.assert_close(norm.mean, every.mean(0))
    settle(norm)
    assert int(norm.steps) == 2, "a step without batches changes nothing"


def test_with_lag_the_past_has_its_share_and_no_gradient() -> None:
    norm = MovingNorm(3, lag=0.75).double()
    norm.steps.fill_(100)
    norm.mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
    x = some().requires_grad_()
    mean, var = norm.moments(x)
    torch.testing.assert_close(mean.flatten(), 0.75 * norm.mean + 0.25 * x.mean((0, 2, 3)))
    torch.testing.assert_close(var.flatten(), 0.75 + 0.25 * x.var((0, 2, 3), correction=0) + EPSILON)
    (gradient,) = torch.autograd.grad(mean.sum(), x)
    torch.testing.assert_close(gradient, torch.full_like(x, 0.25 / 256))
    settle(norm)
    torch.testing.assert_close(norm.mean, mean.flatten().detach())


def test_only_numbers_that_count_are_counted() -> None:
    x = some()
    among = torch.zeros(1, 4, 4, dtype=torch.float64)
    among[:, ::2] = 1
    norm = MovingNorm(3).double()
    mean, var = norm.moments(x * among, among)
    torch.testing.assert_close(mean.flatten(), x[:, :, ::2].mean((0, 2, 3)))
    torch.testing.assert_close(var.flatten(), x[:, :, ::2].var((0, 2, 3), correction=0) + EPSILON)


def test_what_other_processes_gathered_counts_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = MovingNorm(3).double(), MovingNorm(3).double()
    here.moments(some(seed=0))
    there.moments(some(seed=1))
    elsewhere = there.take()
    monkeypatch.setattr(core, "all_reduce", lambda x: x + elsewhere)
    settle(here)
    torch.testing.assert_close(here.mean, torch.stack([some(seed=i).mean((0, 2, 3)) for i in range(2)]).mean(0))
