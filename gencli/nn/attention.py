"""Softmax attention by the kernel that is fastest for the device, type and shape."""

from __future__ import annotations

import torch
from torch import Tensor

PLAIN_TOKENS = 512  # beyond it the matrix of weights costs more memory than the fused kernel costs time


def plain_is_faster(device: str, dtype: torch.dtype, tokens: int, head: int) -> bool:
    """A static table, so that a run uses one kernel from its first step to its last.

    On CPUs the backward pass of the fused kernel in bfloat16 takes most of a step: measured (forward and backward, batch ×
    heads × tokens × head size) 60 against 10 ms at 128×3×49×64 and 29 against 14 ms at 64×1×256×64, but no gain for
    heads of size 8. In float32, and on accelerators, the fused kernel wins.
    """
    return device == "cpu" and dtype in (torch.bfloat16, torch.float16) and tokens <= PLAIN_TOKENS and head >= 16


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q kᵀ / √D) v` for `(N, heads, tokens, D)`."""
    if not plain_is_faster(q.device.type, q.dtype, k.shape[-2], q.shape[-1]):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (N, heads, tokens, tokens)
    return weights.softmax(-1) @ v
