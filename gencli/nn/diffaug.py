"""Differentiable Augmentation for Data-Efficient GAN Training (Zhao et al., 2020), arXiv:2006.10738.

A critic sees data and samples changed alike, and the generator learns through the change. Each of three happens to an image of
values in [−1, 1] with probability p (the paper: always), each drawn for itself:

    colour   x + b,  b ~ U(−½, ½);   then away from its grey by a factor U(0, 2);   then from its mean by U(½, 1½)
    shift    by up to an eighth of the sides, zeros coming in
    cutout   a square of half the sides set to zero, anywhere

At p = 0 an image is unchanged, bit by bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gencli.core import Rng, as_rows

SHIFT, CUT = 0.125, 0.5


def diffaug(x: Tensor, p: Tensor | float, rng: Rng) -> Tensor:
    """`(N, C, H, W)`, each image changed its own way."""
    u = rng.uniform((len(x), 10)).to(x)
    colour, moved, cut = (as_rows(switch, x) < p for switch in u[:, :3].unbind(1))
    x = torch.where(colour, _colour(x, u[:, 3], u[:, 4], u[:, 5]), x)
    x = torch.where(moved, _shift(x, u[:, 6], u[:, 7]), x)
    return torch.where(cut & _square(x, u[:, 8], u[:, 9]), torch.zeros_like(x), x)


def _colour(x: Tensor, brightness: Tensor, saturation: Tensor, contrast: Tensor) -> Tensor:
    x = x + as_rows(brightness - 0.5, x)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * as_rows(2 * saturation, x)
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * as_rows(contrast + 0.5, x)


def _shift(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    for dim, u in ((2, down), (3, right)):
        side = x.shape[dim]
        most = int(side * SHIFT + 0.5)
        by = (u * (2 * most + 1)).floor().long() - most  # (N,)
        source = torch.arange(side, device=x.device) - by[:, None]
        inside = (source >= 0) & (source < side)
        shape = [len(x), 1, 1, 1]
        shape[dim] = side
        x = x.gather(dim, source.clamp(0, side - 1).view(shape).expand_as(x)) * inside.view(shape)
    return x


def _square(x: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """`(N, 1, H, W)`, where an image's square is; its middle may be anywhere in the image."""
    inside = []
    for side, u in ((x.shape[2], down), (x.shape[3], right)):
        size = int(side * CUT + 0.5)
        first = (u * (side + 1 - size % 2)).floor() - size // 2  # (N,)
        place = torch.arange(side, device=x.device)
        inside.append((place >= first[:, None]) & (place < first[:, None] + size))
    return (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
