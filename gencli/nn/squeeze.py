"""Space to depth: each 2×2 square of an image becomes four times as many channels of one place.

`rows` orders the four corners top left, top right, bottom left, bottom right, so that halves of the channels are rows of the
image; `colours` puts the diagonal first, so that the halves are the two colours of a checkerboard.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Corners = Literal["rows", "colours"]
_CORNERS: dict[Corners, tuple[tuple[int, int], ...]] = {
    "rows": ((0, 0), (0, 1), (1, 0), (1, 1)),
    "colours": ((0, 0), (1, 1), (0, 1), (1, 0)),
}


def squeeze(x: Tensor, corners: Corners) -> Tensor:
    """`(N, C, H, W)` to `(N, 4C, H/2, W/2)`."""
    return torch.cat([x[..., i::2, j::2] for i, j in _CORNERS[corners]], dim=1)


def unsqueeze(x: Tensor, corners: Corners) -> Tensor:
    """The inverse of `squeeze`."""
    n, channels, height, width = x.shape
    made = x.new_empty(n, channels // 4, 2 * height, 2 * width)
    for (i, j), part in zip(_CORNERS[corners], x.chunk(4, dim=1), strict=True):
        made[..., i::2, j::2] = part
    return made
