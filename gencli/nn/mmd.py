"""The unbiased squared maximum mean discrepancy of two batches, differentiable (Gretton et al., 2012).

    Σ_{i≠j} [k(x_i, x_j) + k(y_i, y_j)] / (n (n − 1)) − 2 Σ_ij k(x_i, y_j) / n²

with the inverse multiquadratics k(x, y) = Σ_s C_s / (C_s + |x − y|²), C_s = s C, as of Tolstikhin et al. (arXiv:1711.01558).
Its tails are heavy, so that codes far from the prior still feel a pull. (`gencli/metrics/_mmd.py` is the same estimate over
sets too large for all pairs, with intervals.)
"""

from __future__ import annotations

import torch
from torch import Tensor

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # the released code's


def multiquadratics(x: Tensor, y: Tensor, width: float) -> Tensor:
    """k `(N, M)` between the rows of `(N, D)` and `(M, D)`, where `width` is C: 2 D σ² for a prior N(0, σ² I)."""
    square = (x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T).clamp(min=0)
    return torch.stack([scale * width / (scale * width + square) for scale in SCALES]).sum(0)


def unbiased_mmd(x: Tensor, y: Tensor, width: float) -> Tensor:
    """The estimate `()` from two sets of n ≥ 2 rows each; near 0, and as often below, if their distributions are equal."""
    n = len(x)
    same = multiquadratics(x, x, width) + multiquadratics(y, y, width)
    within = (same.sum() - same.diagonal().sum()) / (n * (n - 1))
    return within - 2 * multiquadratics(x, y, width).mean()
