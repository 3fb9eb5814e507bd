"""Spectral regularisation: the sum of the layers' largest singular values (Yoshida & Miyato, 2017). arXiv:1705.10941

    Σ_l u_lᵀ W_l v_l,   v ← Wᵀ u / |Wᵀ u|,   u ← W v / |W v|

Gradients flow to the weights; the vectors are state, moved by a few rounds of power iteration after each step. (A penalty, by
which weights may grow; `gencli/nn/spectral.py` divides them by the singular value instead.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROUNDS, FIRST = 4, 40  # of power iteration: after a step, at the start


class Spectra(nn.Module):
    """The vectors of several weights; `weights` are functions that give them as they are now, `(outs, …)`."""

    def __init__(self, weights: Sequence[Callable[[], Tensor]]) -> None:
        super().__init__()
        self._weights = list(weights)
        for i, weight in enumerate(self._weights):
            rows = weight().detach().flatten(1)
            self.register_buffer(f"left_{i}", F.normalize(nn.init.normal_(torch.empty(len(rows))), dim=0).to(rows))
            self.register_buffer(f"right_{i}", torch.zeros_like(rows[0]))
        self.follow(FIRST)

    def _vectors(self, i: int) -> tuple[Tensor, Tensor]:
        left, right = getattr(self, f"left_{i}"), getattr(self, f"right_{i}")
        assert isinstance(left, Tensor) and isinstance(right, Tensor)
        return left, right

    def total(self) -> Tensor:
        """The sum of the estimates `()`."""
        values = []
        for i, weight in enumerate(self._weights):
            left, right = self._vectors(i)
            values.append(left @ weight().flatten(1) @ right)
        return torch.stack(values).sum()

    @torch.no_grad()
    def follow(self, rounds: int = ROUNDS) -> None:
        """Power iteration on the weights as they are now; the same on every process."""
        for i, weight in enumerate(self._weights):
            (left, right), rows = self._vectors(i), weight().flatten(1)
            if rows.is_meta:  # a model that is only being sized
                continue
            for _ in range(rounds):
                right.copy_(F.normalize(left @ rows, dim=0))
                left.copy_(F.normalize(rows @ right, dim=0))
