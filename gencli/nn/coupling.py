"""Couplings: some numbers stay, the others get functions whose parameters a network makes of those (arXiv:1410.8516).

    y_A = x_A,   y_B = f(x_B; net(x_A, context)),   log |det| = Σ_B log f'(x_b)

f is any `Univariate`. One pass of the network in either direction.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gencli.nn.bijection import Bijection
from gencli.nn.univariate import Univariate


class Coupling(Bijection):
    """For rows `(N, D)`.

    Args:
        changes: of each number whether it is of B.
        net: `(N, |A| + context)` to `(N, |B| · univariate.numbers)`.
        univariate: the functions.
    """

    stays: Tensor
    moves: Tensor

    def __init__(self, changes: Sequence[bool], net: nn.Module, univariate: Univariate) -> None:
        super().__init__()
        self.net, self.univariate = net, univariate
        for name, moved in (("stays", False), ("moves", True)):
            places = [i for i, one in enumerate(changes) if one == moved]
            self.register_buffer(name, torch.tensor(places), persistent=False)

    def _given(self, x: Tensor, context: Tensor | None) -> Tensor:
        seen = x[:, self.stays]
        made = self.net(seen if context is None else torch.cat([seen, context.to(seen)], dim=1))
        return made.to(x.dtype).view(len(x), len(self.moves), self.univariate.numbers)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        made, log_slope = self.univariate.forward(x[:, self.moves], self._given(x, context))
        return x.index_copy(1, self.moves, made), log_slope.sum(1)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        made, log_slope = self.univariate.inverse(y[:, self.moves], self._given(y, context))
        return y.index_copy(1, self.moves, made), log_slope.sum(1)
