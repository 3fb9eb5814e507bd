"""Which tokens a token may look at: boolean tables `(tokens, tokens)`, row i the looking token, True = seen.

All are causal: nothing later in the sequence is ever seen, and every token sees itself.

    window            i − j < span
    local_1d          Parmar et al., 2018 (arXiv:1802.05751): the query block that holds i, and the `memory` tokens before it
    local_2d          the same on a grid: the block, rows above it and columns to either side, in the blocks' own order
    strided, fixed    Child et al., 2019 (arXiv:1904.10509): two tables each, of which one or the other is used in turn

Ours: in the second table of `fixed` a token sees itself too; the paper's would leave the first tokens nothing to see.
"""

from __future__ import annotations

import torch
from torch import Tensor


def causal(tokens: int) -> Tensor:
    """Everything up to the token itself."""
    return torch.ones(tokens, tokens, dtype=torch.bool).tril()


def window(tokens: int, span: int) -> Tensor:
    """The last `span` tokens, the token itself included."""
    i, j = _pairs(tokens)
    return (j <= i) & (i - j < span)


def local_1d(tokens: int, block: int, memory: int) -> Tensor:
    """The token's block of `block` tokens and the `memory` tokens before the block."""
    i, j = _pairs(tokens)
    return (j <= i) & (j >= i // block * block - memory)


def block_order(rows: int, columns: int, block: tuple[int, int]) -> Tensor:
    """`(rows · columns,)` raster positions, visited block by block, blocks and what is in them in raster order."""
    places = torch.arange(rows * columns)
    r, c = places // columns, places % columns
    blocks = r // block[0] * -(-columns // block[1]) + c // block[1]
    return (blocks * rows * columns + places).argsort()


def local_2d(rows: int, columns: int, block: tuple[int, int], memory: tuple[int, int]) -> Tensor:
    """In `block_order`: the token's block, `memory[0]` rows above it, `memory[1]` columns to its left and right."""
    order = block_order(rows, columns, block)
    r, c = order // columns, order % columns
    top, left = r // block[0] * block[0], c // block[1] * block[1]
    high = (r >= top[:, None] - memory[0]) & (r < top[:, None] + block[0])
    wide = (c >= left[:, None] - memory[1]) & (c < left[:, None] + block[1] + memory[1])
    return high & wide & causal(rows * columns)


def strided(tokens: int, stride: int) -> tuple[Tensor, Tensor]:
    """The last `stride` tokens beside the token itself; every `stride`-th token before it."""
    i, j = _pairs(tokens)
    return (j <= i) & (i - j <= stride), (j <= i) & ((i - j) % stride == 0)


def fixed(tokens: int, stride: int, summaries: int = 1) -> tuple[Tensor, Tensor]:
    """The token's own block of `stride` tokens; the last `summaries` tokens of every block."""
    i, j = _pairs(tokens)
    return (j <= i) & (i // stride == j // stride), (j <= i) & ((j % stride >= stride - summaries) | (i == j))


def _pairs(tokens: int) -> tuple[Tensor, Tensor]:
    places = torch.arange(tokens)
    return places[:, None], places[None]
