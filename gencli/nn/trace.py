"""The trace of a Jacobian ∂y/∂x, each item's own: exactly, or by Hutchinson's probes (FFJORD, arXiv:1810.01367).

    tr A = Σ_i e_i·A e_i,      tr A = E[v·A v] for any v of mean 0 and covariance I

Signs ±1 have the least variance among such v, and none where A is diagonal. Every row of y must depend on its row of x alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gencli.core import Rng

Trace = Callable[[Tensor, Tensor], Tensor]  # y (N, …) made of x (N, …), which requires a gradient -> (N,)


def signs(rng: Rng, x: Tensor) -> Tensor:
    """A probe of ±1 in the shape of x."""
    return rng.uniform(x.shape).to(x).sub(0.5).sign()


def exact(again: bool = False) -> Trace:
    """A backward pass for each of an item's numbers; `again` if the trace itself is to be differentiated."""

    def trace(y: Tensor, x: Tensor) -> Tensor:
        total, flat = x.new_zeros(len(x)), y.flatten(1)
        for i in range(flat.shape[1]):
            last = i == flat.shape[1] - 1
            (back,) = torch.autograd.grad(flat[:, i].sum(), x, retain_graph=again or not last, create_graph=again)
            total = total + back.flatten(1)[:, i]
        return total

    return trace


def hutchinson(probes: Sequence[Tensor], again: bool = False) -> Trace:
    """The mean over `probes`, a backward pass each."""

    def trace(y: Tensor, x: Tensor) -> Tensor:
        found = []
        for i, v in enumerate(probes):
            last = i == len(probes) - 1
            (back,) = torch.autograd.grad(y, x, v, retain_graph=again or not last, create_graph=again)
            found.append((back * v).flatten(1).sum(1))
        return found[0] if len(found) == 1 else torch.stack(found).mean(0)

    return trace
