"""How much the items of a batch vary, as one more feature map (Karras et al., arXiv:1710.10196).

    s = mean over channels and positions of √(variance over the items of a group + 10⁻⁸)

the same number everywhere for all items of a group: a critic sees by it that samples are all alike. Items i, i + M, i + 2M, …
of N make one of the M groups. A group has as many items as divide the batch, at most `group`: there a batch of one varies by
nothing. Ours: the released codes refuse a batch that the group does not divide.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 1e-8


def minibatch_std(x: Tensor, group: int) -> Tensor:
    """`(N, C, H, W)` to `(N, C + 1, H, W)`."""
    n, _, height, width = x.shape
    size = next((g for g in range(min(group, n), 1, -1) if n % g == 0), 1)
    wide = x if x.dtype == torch.float64 else x.float()
    spread = (wide.reshape(size, n // size, *x.shape[1:]).var(0, correction=0) + EPSILON).sqrt()
    each = spread.flatten(1).mean(1).repeat(size)  # (N,)
    return torch.cat([x, each[:, None, None, None].to(x.dtype).expand(n, 1, height, width)], dim=1)
