"""Positions: the identities of rotary and relative ones."""

import pytest
import torch
from torch.nn import functional as F

from gencli.nn.positions import Relative, angles, angles_2d, rotate

SIZE = 12


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turned(x, *places):
    made = angles(torch.tensor(places), SIZE)
    return rotate(x, made.cos(), made.sin())


def on_grid(x, row, column):
    made = angles_2d(torch.tensor([row]), torch.tensor([column]), SIZE)
    return rotate(x, made.cos(), made.sin())


def test_rotation_is_the_papers_matrix():
    x, place = drawn(1, SIZE), 5
    matrix = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    for i in range(SIZE // 2):
        angle = torch.tensor(place * 10_000 ** (-2 * i / SIZE), dtype=torch.float64)
        c, s = angle.cos(), angle.sin()
        matrix[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] = torch.tensor([[c, -s], [s, c]])
    torch.testing.assert_close(turned(x, place), x @ matrix.T, rtol=0, atol=1e-12)


def test_products_depend_on_the_difference_of_places_alone():
    q, k = drawn(1, SIZE), drawn(1, SIZE, seed=1)

    def product(m, n):
        return (turned(q, m) * turned(k, n)).sum().item()

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-6)
    assert abs(product(7, 3) - product(7, 4)) > 1e-3
    assert torch.equal(turned(q, 0), q)
    torch.testing.assert_close(turned(q, 9).norm(), q.norm())


def test_on_a_grid_they_depend_on_both_differences_and_on_nothing_else():
    q, k = drawn(1, SIZE), drawn(1, SIZE, seed=1)

    def product(a, b):
        return (on_grid(q, *a) * on_grid(k, *b)).sum().item()

    assert product((5, 3), (2, 7)) == pytest.approx(product((15, 23), (12, 27)), abs=1e-9)
    assert abs(product((5, 3), (2, 7)) - product((3, 5), (7, 2))) > 1e-3
    assert abs(product((5, 3), (2, 7)) - product((5, 3), (3, 7))) > 1e-3


def relative(clip=3):
    made = Relative(SIZE, clip).double()
    made.keys.data, made.values.data = drawn(*made.keys.shape, seed=3), drawn(*made.values.shape, seed=4)
    return made


def shaw(one, q, k, v, places):
    """The paper's equations with a vector for each pair of tokens."""
    rows = (places[None] - places[:, None]).clamp(-one.clip, one.clip) + one.clip
    e = torch.einsum("nhid,nhijd->nhij", q, k[:, :, None] + one.keys[rows]) / SIZE**0.5
    return torch.einsum("nhij,nhijd->nhid", e.softmax(-1), v[:, :, None] + one.values[rows])


def ours(one, q, k, v, places):
    rows = one.rows(places, places)
    weights = ((q @ k.transpose(-1, -2) + one.scores(q, rows)) / SIZE**0.5).softmax(-1)
    return weights @ v + one.mixed(weights, rows)


def test_relative_positions_are_the_papers_equations():
    one, (q, k, v), places = relative(), (drawn(2, 2, 8, SIZE, seed=i) for i in (5, 6, 7)), torch.arange(8)
    made = ours(one, q, k, v, places)
    torch.testing.assert_close(made, shaw(one, q, k, v, places), rtol=0, atol=1e-10)
    assert torch.equal(ours(one, q, k, v, places + 100), made), "shifting all places changes nothing"


def test_zero_tables_are_plain_attention():
    one, (q, k, v) = relative(), (drawn(2, 2, 8, SIZE, seed=i) for i in (5, 6, 7))
    plain = F.scaled_dot_product_attention(q, k, v)
    assert not torch.allclose(ours(one, q, k, v, torch.arange(8)), plain)
    torch.nn.init.zeros_(one.keys)
    torch.nn.init.zeros_(one.values)
    torch.testing.assert_close(ours(one, q, k, v, torch.arange(8)), plain, rtol=0, atol=1e-10)


def test_beyond_the_clip_the_bias_is_constant():
    one, q = relative(clip=3), drawn(1, 1, 1, SIZE)
    bias = one.scores(q, one.rows(torch.tensor([10]), torch.arange(21)))[0, 0, 0]
    assert torch.equal(bias[:8], bias[7].expand(8)) and torch.equal(bias[13:], bias[13].expand(8))
    assert len(bias[7:14].unique()) == 7
