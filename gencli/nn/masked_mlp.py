"""Fully connected layers in which an output sees earlier numbers only (Germain et al., 2015, arXiv:1502.03509).

    h = act(b + (W ⊙ M) x + C c),  M_kj = [m(k) ≥ m(j)];   out_d = b_d + (V_d ⊙ M) h,  M_dk = [m(d) > m(k)]

m(d) is a number's rank in the order, 1 … D; hidden units have the ranks 1 … D − 1 in turn. A context joins in the first layer
and is seen by all units; there are then units of rank 0 too, without which the first number would know nothing of it. For
real numbers; `networks/made.py` is the network of whole ones, with masks drawn by chance.

The last layer begins at zero: so does every output, whatever is seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["relu", "tanh"]
_ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


class MaskedLinear(nn.Linear):
    """A linear layer whose unit k sees input j if degree k ≥ degree j (> for the last layer)."""

    mask: Tensor

    def __init__(self, inputs: Tensor, outputs: Tensor, strict: bool = False) -> None:
        super().__init__(len(inputs), len(outputs))
        seen = outputs[:, None] > inputs if strict else outputs[:, None] >= inputs
        self.register_buffer("mask", seen, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class MaskedMlp(nn.Module):
    """`(N, D)` to `(N, D, each)`, numbers in `order`.

    Args:
        dim: D.
        hidden: units of each hidden layer.
        each: outputs for each number.
        context: numbers of the context; 0 for none.
        order: which number comes i-th; as they stand by default.
        activation: after each hidden layer.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int],
        each: int,
        context: int = 0,
        order: Sequence[int] | None = None,
        activation: Activation = "relu",
    ) -> None:
        super().__init__()
        self.order = tuple(range(dim) if order is None else order)
        ranks = torch.tensor([self.order.index(place) + 1 for place in range(dim)])
        least = 0 if context else min(1, dim - 1)
        units = [torch.arange(size) % max(1, dim - least) + least for size in hidden]
        outputs = ranks.repeat_interleave(each)
        self.layers = nn.ModuleList(MaskedLinear(a, b) for a, b in pairwise([ranks, *units]))
        self.last = MaskedLinear([ranks, *units][-1], outputs, strict=True)
        self.context = nn.Linear(context, len([*units, outputs][0]), bias=False) if context else None
        self.activation = _ACTIVATIONS[activation]
        self.dim, self.each = dim, each
        for layer in (self.last, self.context if not units else None):
            for p in layer.parameters() if layer is not None else ():
                nn.init.zeros_(p)

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        told: Tensor | float = 0.0
        if self.context is not None:
            assert context is not None, "this network depends on a context"
            told = self.context(context)
        for layer in self.layers:
            x, told = self.activation(layer(x) + told), 0.0
        return (self.last(x) + told).view(len(x), self.dim, self.each)
