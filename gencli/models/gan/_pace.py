"""How often augmentation changes what a discriminator sees, so that it does not learn its data by heart.

    r = E sign D(x),   p ← clip(p ± items / span, 0, 1),   up where r > target (Karras et al., arXiv:2006.06676, section 3.1)

once in four turns, over the items of those four. r is 1 where the discriminator is sure of all data and 0 where it cannot
tell them from samples. `span` is the number of items over which p may go from 0 to 1. p and what has been seen so far are
state: a resumed run goes on with the same. Ours: p ends at 1, past which nothing changes more often.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gencli import core

EVERY = 4


class Pace(nn.Module):
    """p and the signs since it last moved."""

    p: Tensor
    signs: Tensor
    items: Tensor
    turns: Tensor

    def __init__(self, p: float) -> None:
        super().__init__()
        self.register_buffer("p", torch.tensor(p))
        for name in ("signs", "items", "turns"):
            self.register_buffer(name, torch.zeros(()))
        self._pending: Tensor | None = None

    def see(self, right: Tensor, items: int) -> None:
        """A micro-batch's share of data that D takes for data."""
        seen = torch.stack([(2 * right - 1) * items, torch.full_like(right, items)]).detach().to(self.p)
        self._pending = seen if self._pending is None else self._pending + seen

    def settle(self, target: float, span: float) -> None:
        """After each of the discriminator's turns, on every process."""
        pending, self._pending = self._pending, None
        signs, items = core.all_reduce(torch.zeros(2).to(self.p) if pending is None else pending)
        self.signs += signs
        self.items += items
        self.turns += 1
        if self.turns < EVERY or not self.items:
            return
        way = (self.signs / self.items - target).sign()
        self.p.add_(way * self.items / span).clamp_(0, 1)
        for seen in (self.signs, self.items, self.turns):
            seen.zero_()
