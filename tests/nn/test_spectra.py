"""Spectral regularisation against singular values."""

from __future__ import annotations

import copy

import torch
from torch import nn

from gencli.nn.spectra import Spectra


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 8, 3).double(), nn.Linear(5, 4).double()
        self.spectra = Spectra([self.first, self.second])

    def first(self) -> torch.Tensor:
        return self.one.weight

    def second(self) -> torch.Tensor:
        return self.two.weight

    def exact(self) -> torch.Tensor:
        return sum(torch.linalg.matrix_norm(w.flatten(1), 2) for w in (self.one.weight, self.two.weight))


def test_the_total_is_the_sum_of_the_largest_singular_values_and_pulls_as_they_do() -> None:
    layers = Layers()
    layers.spectra.follow(400)
    torch.testing.assert_close(layers.spectra.total(), layers.exact())
    weights = [layers.one.weight, layers.two.weight]
    ours, theirs = (torch.autograd.grad(value, weights) for value in (layers.spectra.total(), layers.exact()))
    for mine, exact in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, exact, rtol=1e-5, atol=1e-6)
    frobenius = sum(w.norm() for w in weights)
    assert abs(float((frobenius - layers.exact()).detach())) > 0.5


def test_vectors_follow_the_weights_and_are_state() -> None:
    layers = Layers()
    with torch.no_grad():
        layers.one.weight.normal_(generator=torch.Generator().manual_seed(1))
    before = float((layers.exact() - layers.spectra.total()).detach())
    for _ in range(30):
        layers.spectra.follow()
    assert float((layers.exact() - layers.spectra.total()).detach()) < 0.05 * before
    assert {key for key in layers.state_dict() if "spectra" in key} == {
        f"spectra.{side}_{i}" for side in ("left", "right") for i in range(2)
    }
    other = copy.deepcopy(layers)
    with torch.no_grad():
        other.one.weight.zero_()
    assert other.spectra.total() < layers.spectra.total(), "a copy looks at its own weights"
