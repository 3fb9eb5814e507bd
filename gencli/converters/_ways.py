"""How a tensor of ours lies in another program's file: pairs of exact functions, there and back.

Rows of queries, keys and values (j = 0, 1, 2; head h of H; channel c of D) lie in three orders:

    ours, timm, guided-diffusion's new   j C + h D + c
    improved-diffusion's, legacy         h 3 D + j D + c
    EDM's, interleaved                   (h D + c) 3 + j
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Way:
    """Theirs to ours and back.

    Args:
        bring: our tensor from theirs, given the module of ours whose layer it is for.
        send: theirs from ours.
        parts: what stands for `{}` in their name, for each of their tensors; one that has no `{}` is one tensor.
    """

    bring: Callable[[Sequence[Tensor], Any], Tensor]
    send: Callable[[Tensor, Any], Sequence[Tensor]]
    parts: tuple[str, ...] = ("",)

    def then(self, after: Way) -> Way:
        """Theirs through this way, then through `after`; theirs are as many as this way has parts."""
        return Way(
            lambda given, module: after.bring([self.bring(given, module)], module),
            lambda ours, module: self.send(after.send(ours, module)[0], module),
            self.parts,
        )


def each(bring: Callable[[Tensor], Tensor], send: Callable[[Tensor], Tensor]) -> Way:
    """One tensor to one."""
    return Way(lambda given, _: bring(given[0]), lambda ours, _: [send(ours)])


def rows(order: Callable[[Any, int], Tensor]) -> Way:
    """Rows in another order; `order` gives for each of our rows the place of theirs."""

    def send(ours: Tensor, module: Any) -> list[Tensor]:
        return [ours[order(module, len(ours)).argsort()]]

    return Way(lambda given, module: given[0][order(module, len(given[0]))], send)


def _legacy(module: Any, count: int) -> Tensor:
    return torch.arange(count).reshape(module.heads, 3, -1).transpose(0, 1).flatten()


def _interleaved(module: Any, count: int) -> Tensor:
    return torch.arange(count).reshape(-1, 3).T.flatten()


def joined(*parts: str) -> Way:
    """Several of theirs, of equally many rows, are one of ours."""
    return Way(
        lambda given, _: torch.cat(list(given)),
        lambda ours, _: list(ours.chunk(len(parts))),
        parts,
    )


def turned(*parts: str) -> Way:
    """Several maps of theirs, inputs first, are one of ours."""
    return Way(
        lambda given, _: torch.cat([t.T for t in given]),
        lambda ours, _: [part.T for part in ours.chunk(len(parts))],
        parts,
    )


def _one(tensor: Tensor, ends: int) -> Tensor:
    return tensor.reshape(*tensor.shape, *[1] * ends)


SAME = each(lambda t: t, lambda t: t)
ROW = each(lambda t: t[0], lambda t: t[None])  # theirs has a first dimension of 1
POINT1 = each(lambda t: t.flatten(1), lambda t: _one(t, 1))  # a convolution of one point is a linear layer
POINT2 = each(lambda t: t.flatten(1), lambda t: _one(t, 2))
TURNED = each(lambda t: t.T, lambda t: t.T)
LEGACY, INTERLEAVED = rows(_legacy), rows(_interleaved)
NULL_LAST = each(
    lambda t: torch.cat([t, t.new_zeros(1, *t.shape[1:])]), lambda t: t[:-1]
)  # ours has "no class" as well


def owner(model: nn.Module, key: str) -> nn.Module:
    """The module that the layer of a tensor belongs to."""
    return model.get_submodule(".".join(key.split(".")[:-2]))
