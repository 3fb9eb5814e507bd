"""Geometric augmentations that a network is told of (Karras et al., arXiv:2206.00364, appendix F.2)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.core import Rng

LABELS = 9
SCALE, SHIFT = 0.2, 0.125  # standard deviations: of log₂ of a scaling, and of a shift as a share of the side


def geometric(x: Tensor, share: float, rng: Rng) -> tuple[Tensor, Tensor]:
    """Images `(N, C, H, W)` transformed, each its own way, and the nine numbers `(N, 9)` that say how.

    Every second image is mirrored; with probability `share` each: a vertical flip, a scaling, a rotation by any angle, a
    stretching along any axis, a shift. Zeros are the identity. Beyond its edge an image is mirrored.
    """
    n = len(x)
    u = rng.at("uniform").uniform((n, 9), torch.float64).to(x.device)
    z = rng.at("normal").normal((n, 4), torch.float64).to(x.device)
    on = (u[:, :5] < share).double()
    mirrored, upside = (u[:, 5] < 0.5).double(), on[:, 0] * (u[:, 6] < 0.5)
    size, angle = z[:, 0] * on[:, 1], (2 * u[:, 7] - 1) * math.pi * on[:, 2]
    stretch, axis = z[:, 1] * on[:, 3], (2 * u[:, 8] - 1) * math.pi
    shift = z[:, 2:] * on[:, 4:5]
    there = _diagonal(1 - 2 * mirrored, 1 - 2 * upside)
    there = _diagonal(*[2 ** (SCALE * size)] * 2) @ there
    there = _turn(angle) @ there
    there = _turn(axis) @ _diagonal(2 ** (SCALE * stretch), 2 ** (-SCALE * stretch)) @ _turn(-axis) @ there
    labels = [mirrored, upside, size, angle.cos() - 1, angle.sin()]
    labels += [stretch * axis.cos(), stretch * axis.sin(), shift[:, 0], shift[:, 1]]
    return _warped(x, there, shift * SHIFT), torch.stack(labels, 1).to(x)


def _warped(x: Tensor, there: Tensor, shift: Tensor) -> Tensor:
    """x moved by the matrices `there` `(N, 2, 2)` about its middle, then by `shift` `(N, 2)` shares of its sides (x, y)."""
    height, width = x.shape[-2:]
    aspect = torch.tensor([width, height], dtype=torch.float64, device=x.device) / 2
    back = torch.linalg.inv(there) * aspect[None, None, :] / aspect[None, :, None]  # in units of half a side
    offset = -(back @ (2 * shift)[:, :, None])
    grid = F.affine_grid(torch.cat([back, offset], 2).to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _diagonal(a: Tensor, b: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([a, b], -1))


def _turn(angle: Tensor) -> Tensor:
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)
