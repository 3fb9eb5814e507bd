"""Masks: what each token sees, against the definitions spelt out token by token."""

import math

import pytest
import torch

from gencli.nn import masks

N, STRIDE = 24, 5


def table(n, seen):
    return torch.tensor([[j <= i and seen(i, j) for j in range(n)] for i in range(n)])


@pytest.mark.parametrize(
    ("made", "seen"),
    [
        (masks.causal(N), lambda i, j: True),
        (masks.window(N, 4), lambda i, j: j in (i, i - 1, i - 2, i - 3)),
        (masks.local_1d(N, 6, 4), lambda i, j: j >= 6 * (i // 6) - 4),
        (masks.strided(N, STRIDE)[0], lambda i, j: j >= i - STRIDE),
        (masks.strided(N, STRIDE)[1], lambda i, j: (i - j) % STRIDE == 0),
        (masks.fixed(N, STRIDE, 2)[0], lambda i, j: i // STRIDE == j // STRIDE),
        (masks.fixed(N, STRIDE, 2)[1], lambda i, j: j % STRIDE in (3, 4) or i == j),
    ],
    ids=["causal", "window", "local-1d", "strided-near", "strided-far", "fixed-near", "fixed-far"],
)
def test_what_is_seen_is_what_the_definition_says(made, seen):
    assert torch.equal(made, table(N, seen))


def test_blocks_are_read_in_raster_order_and_so_is_what_is_in_them():
    assert masks.block_order(3, 4, (2, 2)).tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 10, 11]
    assert masks.block_order(2, 6, (5, 4)).tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 4, 5, 10, 11]


def test_a_block_on_a_grid_sees_itself_the_rows_above_and_the_columns_beside_it():
    rows, columns, block, memory = 6, 8, (2, 4), (1, 2)
    order = masks.block_order(rows, columns, block).tolist()

    def seen(i, j):
        (r, c), (y, x) = (divmod(order[k], columns) for k in (i, j))
        top, left = r // 2 * 2, c // 4 * 4
        return top - 1 <= y < top + 2 and left - 2 <= x < left + 4 + 2

    made = masks.local_2d(rows, columns, block, memory)
    assert torch.equal(made, table(rows * columns, seen))
    corner = order.index(2 * columns + 3)  # third row: the block above to the right has been read
    assert {divmod(order[j], columns) for j in made[corner].nonzero().flatten().tolist()} >= {(1, 4), (1, 5), (1, 0)}


@pytest.mark.parametrize("pattern", [masks.strided, masks.fixed])
def test_two_hops_reach_every_earlier_token_at_the_cost_of_a_root(pattern):
    for n in (16, 50, 64):
        near, far = pattern(n, math.isqrt(n))
        assert torch.equal((far.float() @ near.float()) > 0, masks.causal(n))
        most = (near.sum(1) + far.sum(1)).max().item()
        assert most <= 2 * math.sqrt(n) + 4
        assert not torch.equal((near.float() @ near.float()) > 0, masks.causal(n)), "one table alone does not"


def test_memory_that_holds_everything_is_the_whole_triangle():
    assert torch.equal(masks.local_1d(N, 6, N), masks.causal(N))
    whole = masks.local_2d(4, 6, (2, 3), (4, 6))
    assert torch.equal(whole, masks.causal(N))
