"""Spectral normalisation (Miyato et al., arXiv:1802.05957): a layer's weights over their greatest singular value.

    W̄ = W / σ,   σ = u·W v,   v ← Wᵀu / ‖Wᵀu‖,  u ← W v / ‖W v‖

W is the matrix of outputs by everything else. u and v are buffers; they take one step of the power iteration when `settle` is
called, after each optimiser step, so that they depend neither on how many passes a step has nor on how its batch is split.
Gradients flow through W in σ, not through u and v.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

FIRST = 15  # iterations before the first step


class Spectral(nn.Module):
    """W to W̄."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.detach().flatten(1)
        self.register_buffer("u", F.normalize(nn.init.normal_(torch.empty_like(matrix[:, 0])), dim=0))
        self.register_buffer("v", F.normalize(nn.init.normal_(torch.empty_like(matrix[0])), dim=0))
        for _ in range(0 if weight.is_meta else FIRST):  # a model that is only being sized has nothing to iterate
            self.iterate(weight)

    def forward(self, weight: Tensor) -> Tensor:
        return weight / torch.dot(self.u, weight.flatten(1) @ self.v)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """One step of the power iteration."""
        matrix = weight.flatten(1)
        self.v.copy_(F.normalize(matrix.T @ self.u, dim=0))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))


def spectral(layer: nn.Module) -> nn.Module:
    """The layer with its weight normalised."""
    assert isinstance(layer.weight, Tensor), "a layer with a weight"
    parametrize.register_parametrization(layer, "weight", Spectral(layer.weight))
    return layer


def settle(module: nn.Module) -> None:
    """One step of every power iteration inside."""
    for layer in module.modules():
        held = getattr(layer, "parametrizations", None)
        if held is not None and "weight" in held and isinstance(held.weight[0], Spectral):
            held.weight[0].iterate(held.weight.original)
