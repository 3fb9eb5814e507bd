"""Finite scalar quantisation: a bijection with mixed-radix numbers, its levels and gradient, and another implementation."""

import itertools

import pytest
import torch

from gencli.errors import GencliError
from gencli.nn.fsq import FSQ

LEVELS = [(8, 5, 5, 5), (8, 6, 5), (3, 4), (7,)]


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("levels", LEVELS)
def test_codes_and_values_are_one_to_one_and_digits_have_the_first_level_least(levels):
    made = FSQ(levels).double()
    codes = torch.arange(made.codes).view(1, -1)
    values = made.lookup(codes)
    assert torch.equal(made.index(values), codes)
    expected = [
        [(digit - n // 2) / (n // 2) for digit, n in zip(reversed(digits), levels, strict=True)]
        for digits in itertools.product(*(range(n) for n in reversed(levels)))
    ]
    torch.testing.assert_close(values[0].T, torch.tensor(expected, dtype=torch.float64))
    assert len(values[0].T.unique(dim=0)) == made.codes


@pytest.mark.parametrize("levels", LEVELS)
def test_every_level_is_reached_in_order_and_nought_stays_nought(levels):
    made = FSQ(levels).double()
    z = torch.linspace(-12, 12, 4001, dtype=torch.float64).expand(len(levels), -1)[None]
    values = made(z)[0]
    for row, n in zip(values, levels, strict=True):
        assert len(row.unique()) == n and (row.diff() >= 0).all()
    assert torch.equal(made.lookup(made.index(values[None]))[0], values), "exactly on the grid"
    torch.testing.assert_close(
        made.bound(torch.zeros(1, len(levels), 1).double()), torch.zeros(1, len(levels), 1).double()
    )
    assert not made(torch.zeros(1, len(levels), 1)).any()


def test_the_gradient_is_that_of_the_squeeze():
    made, z = FSQ((8, 5)).double(), normal(3, 2, 4).requires_grad_()
    (made(z) * normal(3, 2, 4, seed=1)).sum().backward()
    half = torch.tensor([7, 4]).double() * 0.999 / 2
    shift = torch.tensor([torch.atanh(0.5 / half[0]), 0.0]).double()
    slope = half[:, None] * (1 - (z + shift[:, None]).tanh() ** 2) / torch.tensor([[4.0], [2.0]])
    torch.testing.assert_close(z.grad, slope.detach() * normal(3, 2, 4, seed=1))


def test_another_implementation_gives_the_same_codes():
    other = pytest.importorskip("vector_quantize_pytorch").FSQ([8, 5, 5, 5])
    made, z = FSQ((8, 5, 5, 5)), 2 * normal(8, 4, 64).float()
    rows = z.movedim(1, -1)
    torch.testing.assert_close(
        other.bound(rows, eps=-1e-3).movedim(-1, 1), made(z)
    )  # there levels are wider by ε, here narrower
    values, codes = other(rows)
    same = codes == made.index(made(z))
    assert same.float().mean() > 0.97
    torch.testing.assert_close(values[same], made(z).movedim(1, -1)[same])


@pytest.mark.parametrize("levels", [(), (5, 2)])
def test_fewer_than_three_levels_are_refused(levels):
    with pytest.raises(GencliError, match="needs 3 levels or more"):
        FSQ(levels)
