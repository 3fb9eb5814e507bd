"""Where a token stands, told to attention.

Added to the tokens: a learned table, or sines and cosines (Vaswani et al., 2017, arXiv:1706.03762) of the place in the
sequence or, half of the width each, of the column and row (`gencli/nn/embed.py`).

Rotary (Su et al., 2021, arXiv:2104.09864): queries and keys are turned, pair i of their numbers by the angle m θ_i at place
m, θ_i = 10000^(−2i/D), so that a product of a query and a key depends on the difference of their places alone. On a grid
half of the pairs turn by the row and half by the column.

Relative (Shaw, Uszkoreit & Vaswani, 2018, arXiv:1803.02155):

    e_ij = q_i (k_j + a^K_{j−i})ᵀ / √D,   z_i = Σ_j α_ij (v_j + a^V_{j−i}),   distances clipped to ±clip

Neither table is ever spread out to all pairs of tokens: q is multiplied with the 2 clip + 1 rows and the products are picked
by distance, and weights of equal distance are summed before they meet a^V.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

PERIOD = 10_000.0


def angles(places: Tensor, size: int, period: float = PERIOD) -> Tensor:
    """`(T, size / 2)` angles of the pairs of a vector of `size` numbers at places `(T,)`, in float64."""
    assert size % 2 == 0, f"rotary positions turn pairs of numbers, got {size} of them"
    theta = period ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return places.double()[:, None] * theta


def angles_2d(rows: Tensor, columns: Tensor, size: int, period: float = PERIOD) -> Tensor:
    """`(T, size / 2)`: half of the pairs turn by the row, half by the column."""
    assert size % 4 == 0, f"rotary positions on a grid need vectors of a multiple of 4 numbers, got {size}"
    return torch.cat([angles(rows, size // 2, period), angles(columns, size // 2, period)], dim=1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`x` `(…, T, D)`, its neighbouring pairs turned by angles of the cosines and sines `(T, D / 2)`."""
    a, b = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class Relative(nn.Module):
    """The two tables of relative positions, shared by the heads; they start small.

    Args:
        size: numbers in a head's vectors.
        clip: distances beyond it are told as if they were it.
    """

    def __init__(self, size: int, clip: int) -> None:
        super().__init__()
        self.clip = clip
        self.keys = nn.Parameter(torch.empty(2 * clip + 1, size))
        self.values = nn.Parameter(torch.empty(2 * clip + 1, size))
        for table in (self.keys, self.values):
            nn.init.normal_(table, std=0.02)

    def rows(self, asking: Tensor, asked: Tensor) -> Tensor:
        """`(Q, K)` rows of the tables for the places `(Q,)` of queries and `(K,)` of keys."""
        return (asked[None] - asking[:, None]).clamp(-self.clip, self.clip) + self.clip

    def scores(self, q: Tensor, rows: Tensor) -> Tensor:
        """q_i · a^K_{j−i} `(N, heads, Q, K)`, not yet scaled."""
        made = q @ self.keys.T.to(q.dtype)
        return made.gather(-1, rows.expand(*q.shape[:2], *rows.shape))

    def mixed(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Σ_j α_ij a^V_{j−i} `(N, heads, Q, D)`."""
        sums = weights.new_zeros(*weights.shape[:-1], len(self.values))
        sums = sums.scatter_add(-1, rows.expand_as(weights), weights)
        return sums @ self.values.to(weights.dtype)
