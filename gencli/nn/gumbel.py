"""The Gumbel-softmax: draws from a categorical distribution that gradients pass, by Jang et al. (2016), arXiv:1611.01144.

    g = −log(−log u), u ~ U(0, 1);   argmax(log π + g) ~ π;   y = softmax((log π + g) / τ) → one-hot as τ → 0

`hard` is straight-through: the value is the one-hot vector of the argmax, exactly, and the gradient that of y.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST = 1e-20  # u = 0 is a value of a uniform number


def gumbel(u: Tensor) -> Tensor:
    """Standard Gumbel numbers from uniform ones in [0, 1)."""
    return -(-u.clamp(min=LEAST).log()).clamp(min=LEAST).log()


def gumbel_softmax(logits: Tensor, u: Tensor, tau: float, hard: bool = False, dim: int = 1) -> Tensor:
    """Relaxed draws, of the shape of `logits`, which need not be normalised; `u` is uniform noise of that shape."""
    noisy = logits + gumbel(u)
    soft = (noisy / tau).softmax(dim)
    if not hard:
        return soft
    one = torch.zeros_like(soft).scatter(dim, noisy.argmax(dim, keepdim=True), 1.0)
    return one + (soft - soft.detach())


def kl_to_uniform(logits: Tensor, dim: int = 1) -> Tensor:
    """KL(q ‖ uniform) = log K − H(q) in nats, of each distribution along `dim`."""
    log_q = logits.log_softmax(dim)
    return math.log(logits.shape[dim]) + (log_q.exp() * log_q).sum(dim)


def annealed(start: float, end: float, steps: float, step: int) -> float:
    """From `start` to `end` in `steps` steps along half a cosine, then `end`."""
    done = min(step / steps, 1.0) if steps > 0 else 1.0
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2
