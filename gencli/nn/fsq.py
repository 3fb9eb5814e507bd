"""Finite scalar quantisation: every number of a vector is rounded to one of a few levels; the codebook is their grid.

    z_i → f(z_i) = h_i tanh(z_i + s_i) − o_i → round → / ⌊L_i / 2⌋ in [−1, 1],   h_i = (1 − ε)(L_i − 1) / 2

with o_i = ½ for an even number of levels L_i and 0 for an odd one, and s_i such that f(0) = 0: values are
−⌊L/2⌋ … ⌈L/2⌉ − 1 over ⌊L/2⌋. The gradient passes the rounding as if it were not there. A code is the number whose digits in
the mixed base (L_1, L_2, …), the first the least, are the levels: all Π L_i codes occur.

Ours: s = artanh(o / h), which makes f(0) = 0; the paper's listing has tan, which is less than 0.001 away. Two levels have
no such s: raises GencliError for fewer than three.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gencli.errors import GencliError

EPSILON = 1e-3
LEAST = 3


class FSQ(nn.Module):
    """Vectors `(N, D, *grid)` to values on a grid of `levels` in each of the D numbers."""

    reach: Tensor
    offset: Tensor
    shift: Tensor
    width: Tensor
    base: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < LEAST:
            raise GencliError(
                f"levels {','.join(map(str, levels)) or '(none)'}: every number needs {LEAST} levels or more",
                "give a number of levels for each number of a code: --levels 8,5,5,5",
            )
        self.levels = tuple(levels)
        self.codes = math.prod(levels)
        exact = torch.tensor(levels, dtype=torch.float64)
        half, offset = (exact - 1) * (1 - EPSILON) / 2, 0.5 * (1 - exact % 2)
        base = torch.tensor([math.prod(levels[:i]) for i in range(len(levels))])
        held = {"reach": half, "offset": offset, "shift": (offset / half).atanh(), "width": exact // 2, "base": base}
        for name, value in held.items():
            kept = value if name == "base" else value.float()
            self.register_buffer(name, kept, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Between the outermost levels, in steps of one."""
        half, offset, shift = (_columns(value, z) for value in (self.reach, self.offset, self.shift))
        return half * (z + shift).tanh() - offset

    def forward(self, z: Tensor) -> Tensor:
        """Values in [−1, 1], exactly on the grid; their gradient is that of the bounded z."""
        bounded = self.bound(z)
        return (bounded.round().detach() + (bounded - bounded.detach())) / _columns(self.width, z)

    def index(self, values: Tensor) -> Tensor:
        """Codes `(N, *grid)` of values on the grid."""
        width = _columns(self.width, values)
        digits = (values * width + width).round().long()
        return (digits * _columns(self.base, digits)).sum(1)

    def lookup(self, codes: Tensor) -> Tensor:
        """The values `(N, D, *grid)` of codes `(N, *grid)`."""
        digits = [codes // base % levels for base, levels in zip(self.base.tolist(), self.levels, strict=True)]
        stacked = torch.stack(digits, 1).to(self.width)
        width = _columns(self.width, stacked)
        return (stacked - width) / width


def _columns(value: Tensor, like: Tensor) -> Tensor:
    """`(D,)` to broadcast over `(N, D, *grid)`, in the type of `like`."""
    return value.to(like.dtype).view(-1, *[1] * (like.ndim - 2))
