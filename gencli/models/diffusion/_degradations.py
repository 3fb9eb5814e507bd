"""What cold diffusion undoes: D(x, t) for t = 0 … T, from the image itself to one of a single colour.

blur       Gaussian kernels one after another, with insulated borders; the last step leaves the mean of each channel
pixelate   sides of s_t pixels, s_t from the side down to 1 in geometric progression: means of cells, then squares
mask       (1 − a_t) x + a_t c for a colour c;  1 − a_t = 1 − Π (1 − g_i), the product over i < T − t of Gaussian holes g_i
           about the centre: the colour comes in from the borders
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from gencli.models.diffusion._heat import apply, blurs

DegradationName = Literal["blur", "pixelate", "mask"]
Growth = Literal["linear", "exponential"]


class Degradation(nn.Module):
    """D for images of `sides` (H, W) in `steps` steps; `stds` `(T,)` are those of the kernels, in pixels."""

    def __init__(self, name: DegradationName, sides: tuple[int, int], steps: int, stds: Tensor) -> None:
        super().__init__()
        self.name, self.steps = name, steps
        self.rows: Tensor
        self.columns: Tensor
        self.kept: Tensor
        if name == "mask":
            self.register_buffer("kept", holes(sides, stds).float(), persistent=False)
            return
        made = [blurring(side, stds) if name == "blur" else cells(side, steps) for side in sides]
        self.register_buffer("rows", made[0].float(), persistent=False)
        self.register_buffer("columns", made[1].float(), persistent=False)

    def forward(self, x: Tensor, t: Tensor, colour: Tensor) -> Tensor:
        """D(x, t) of images `(N, C, H, W)` at steps `(N,)`; `colour` `(N, C)` is the mask's."""
        if self.name != "mask":
            return apply(self.rows[t], x, self.columns[t])
        kept = self.kept[t][:, None].to(x)
        return kept * x + (1 - kept) * colour[:, :, None, None].to(x)


def kernels(steps: int, first: float, last: float, growth: Growth) -> Tensor:
    """Standard deviations `(steps,)` from first to last, float64."""
    if growth == "linear":
        return torch.linspace(first, last, steps, dtype=torch.float64)
    return torch.linspace(math.log(first), math.log(last), steps, dtype=torch.float64).exp()


def blurring(side: int, stds: Tensor) -> Tensor:
    """`(T + 1, side, side)`: nothing, the kernels composed, and at last the mean."""
    sums = torch.cat([stds.new_zeros(1), stds.square().cumsum(0)]).sqrt()
    made = blurs(side, sums)
    made[-1] = 1 / side
    return made


def cells(side: int, steps: int) -> Tensor:
    """`(steps + 1, side, side)`: means over s_t cells, laid out as squares again."""
    sizes = [round(side ** (1 - t / steps)) for t in range(steps + 1)]
    return torch.stack([_cells(side, size) for size in sizes])


def _cells(side: int, size: int) -> Tensor:
    edges = torch.arange(size + 1, dtype=torch.float64) * (side / size)
    low, high, at = edges[:-1].floor(), edges[1:].ceil(), torch.arange(side, dtype=torch.float64)
    inside = (
        (at >= low[:, None]) & (at < high[:, None])
    ).double()  # (size, side); cells that share a pixel both have it
    means = inside / inside.sum(1, keepdim=True)
    return means[(at * (size / side)).long().clamp(max=size - 1)]


def holes(sides: tuple[int, int], stds: Tensor) -> Tensor:
    """`(T + 1, H, W)`: the share of the image that is left."""
    y, x = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2 for side in sides)
    apart = y[:, None] ** 2 + x**2
    covered = torch.cat([apart.new_ones(1, *sides), 1 - torch.exp(-apart / (2 * stds[:, None, None] ** 2))]).cumprod(0)
    kept = 1 - covered[:-1].flip(0)  # T rows, the last all colour
    return torch.cat([torch.ones_like(kept[:1]), kept])
