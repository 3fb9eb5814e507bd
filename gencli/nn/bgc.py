"""Training Generative Adversarial Networks with Limited Data: the augmentations (Karras et al., 2020), arXiv:2006.06676.

The pipeline `bgc` of the paper: *b*lits, *g*eneral geometry, *c*olours, one after the other, each with probability p and each
image its own way; values lie in [−1, 1].

    b   mirror image with one half · one of four quarter turns · a shift by whole pixels of up to an eighth of the sides
    g   size 2ᶻ, z ~ N(0, 0.2²) · a turn by any angle · stretched by 2ᶻ, squeezed by 2⁻ᶻ, z ~ N(0, 0.2²) · a turn again
        (either of the turns happens with probability p) · a shift by N(0, 0.125²) of the sides
    c   plus N(0, 0.2²) · times 2ᶻ, z ~ N(0, 0.5²) · with one half turned over along grey · colours turned around grey by any
        angle · colourfulness times 2ᶻ, z ~ N(0, 1); the last two of colour images only

As long as p < 1, what the critic sees of two different distributions differs, since each change does nothing with probability
1 − p: a generator cannot match augmented data by making augmented images, so that nothing leaks (in practice up to 0.8).
At p = 0 an image is unchanged, bit by bit. Ours: beyond its edge an image is mirrored without end (`nn/warp.py`), in the
released code as far as another image.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gencli.core import Rng, as_rows
from gencli.nn.warp import blit, warp

EIGHTH = 0.125


def bgc(x: Tensor, p: Tensor | float, rng: Rng) -> Tensor:
    """`(N, C, H, W)`, each image changed its own way."""
    assert x.shape[1] in (1, 3), "grey or of three colours"
    p = torch.as_tensor(p, dtype=torch.float32, device=x.device)
    if not bool(p > 0):
        return x
    u, z = rng.at("uniform").uniform((len(x), 24)).to(x.device), rng.at("normal").normal((len(x), 8)).to(x.device)
    size = torch.tensor([x.shape[3], x.shape[2]], dtype=u.dtype, device=u.device)
    x = blit(x, _blits(u[:, :8], p, size))
    moved, back = _geometry(u[:, 8:16], z[:, :4], p, size)
    if moved.any():
        x = torch.where(as_rows(moved, x), warp(x, back), x)
    tinted, colours = _colours(u[:, 16:], z[:, 4:], p, x.shape[1] == 3)
    return torch.where(as_rows(tinted, x), _tint(x, colours.to(x)), x)


def _blits(u: Tensor, p: Tensor, size: Tensor) -> Tensor:
    """Where a place in the result comes from `(N, 3, 3)`, in pixels from the middle: mirrored, turned, shifted."""
    on = u[:, :3] < p
    mirrored, quarters = on[:, 0] * (2 * u[:, 3]).floor(), on[:, 1] * (4 * u[:, 4]).floor()
    shift = on[:, 2:] * ((2 * u[:, 5:7] - 1) * EIGHTH * size).round()
    return _scaled(1 - 2 * mirrored, torch.ones_like(mirrored)) @ _turned(math.pi / 2 * quarters) @ _moved(shift)


def _geometry(u: Tensor, z: Tensor, p: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Which images move `(N,)`, and where a place in the result comes from: resized, turned, stretched, turned, shifted."""
    turned = 1 - (1 - p).clamp(min=0).sqrt()  # so that one of two happens with probability p
    on = u[:, :5] < torch.stack([p, turned, p, turned, p])
    grown, first = (0.2 * z[:, 0] * on[:, 0]).exp2(), math.pi * (2 * u[:, 5] - 1) * on[:, 1]
    pulled, second = (0.2 * z[:, 1] * on[:, 2]).exp2(), math.pi * (2 * u[:, 6] - 1) * on[:, 3]
    shift = on[:, 4:] * EIGHTH * z[:, 2:4] * size
    back = _scaled(1 / grown, 1 / grown) @ _turned(first) @ _scaled(1 / pulled, pulled)
    return on.any(1), back @ _turned(second) @ _moved(shift)


def _scaled(a: Tensor, b: Tensor) -> Tensor:
    return torch.diag_embed(torch.stack([a, b, torch.ones_like(a)], -1))


def _turned(angle: Tensor) -> Tensor:
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    rows = [torch.stack(row, -1) for row in ([c, -s, zero], [s, c, zero], [zero, zero, one])]
    return torch.stack(rows, -2)


def _moved(by: Tensor) -> Tensor:
    made = torch.eye(3, device=by.device).repeat(len(by), 1, 1)
    made[:, :2, 2] = by
    return made


def _colours(u: Tensor, z: Tensor, p: Tensor, coloured: bool) -> tuple[Tensor, Tensor]:
    """Which images are tinted `(N,)`, and how `(N, 3, 4)`: a matrix of colours and what is added."""
    on = (u[:, :5] < p).to(z)
    plus, times = 0.2 * z[:, 0] * on[:, 0], (0.5 * z[:, 1] * on[:, 1]).exp2()
    over = 1 - 2 * on[:, 2] * (2 * u[:, 5]).floor()
    angle, colourful = math.pi * (2 * u[:, 6] - 1) * on[:, 3], (z[:, 2] * on[:, 4]).exp2()
    if not coloured:
        angle, colourful = torch.zeros_like(angle), torch.ones_like(colourful)
    grey = torch.full((3, 3), 1 / 3, device=u.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=u.device) / math.sqrt(3)
    turn = angle.cos()[:, None, None] * (torch.eye(3, device=u.device) - grey) + angle.sin()[:, None, None] * cross
    matrix = over[:, None, None] * grey + colourful[:, None, None] * turn
    matrix = times[:, None, None] * matrix
    made = torch.cat([matrix, (matrix @ plus[:, None, None].expand(-1, 3, 1))], 2)
    still = (plus == 0) & (times == 1) & (over == 1) & (angle == 0) & (colourful == 1)
    return ~still, made


def _tint(x: Tensor, colours: Tensor) -> Tensor:
    """Colours `(N, 3, 4)` of images; of grey ones the mean over colours."""
    if x.shape[1] == 1:
        line = colours.mean(1)
        return x * as_rows(line[:, :3].sum(1), x) + as_rows(line[:, 3], x)
    return torch.einsum("nij,njhw->nihw", colours[:, :, :3], x) + colours[:, :, 3, None, None]
