"""Convolutions that halve or double the sides behind a low-pass filter, as in StyleGAN2.

Karras et al., 2019, arXiv:1912.04958, appendix B. With f an even symmetric filter of sum 1 along both axes, [1, 3, 3, 1] / 8,

    up     zeros between the pixels, 4 f, then w:   computed as a transposed convolution by w of stride 2, then 4 f
    down   f, then w at every second pixel

Outside the image are zeros. The order is free, since all three are linear and commute.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = (1.0, 3.0, 3.0, 1.0)


class Fir(nn.Module):
    """A filter of an even length along both axes, each channel for itself."""

    kernel: Tensor  # (1, 1, L, L), of sum 1

    def __init__(self, taps: Sequence[float] = TAPS) -> None:
        super().__init__()
        line = torch.tensor(taps) / sum(taps)
        self.register_buffer("kernel", (line[:, None] * line)[None, None], persistent=False)

    def forward(self, x: Tensor, padding: int, gain: float = 1.0) -> Tensor:
        """`(N, C, H, W)`, surrounded by zeros; `padding = L / 2` of them leave one row and column more than there were."""
        weight = (self.kernel * gain).to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv2d(x, weight, padding=padding, groups=x.shape[1])

    def up(self, x: Tensor, weight: Tensor) -> Tensor:
        """Twice the sides, through `weight` `(out, in, 3, 3)`."""
        wide = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)  # (N, out, 2H + 1, 2W + 1)
        return self(wide, self.reach - 1, gain=4.0)

    def down(self, x: Tensor, weight: Tensor) -> Tensor:
        """Half the sides, through `weight` `(out, in, k, k)`, k 1 or 3."""
        return F.conv2d(self(x, self.reach - 1 + weight.shape[-1] // 2), weight, stride=2)

    def twice(self, x: Tensor) -> Tensor:
        """The picture at twice its sides."""
        weight = (self.kernel * 4).to(x.dtype).expand(x.shape[1], -1, -1, -1)
        return F.conv_transpose2d(x, weight, stride=2, padding=self.reach - 1, groups=x.shape[1])

    @property
    def reach(self) -> int:
        """Half the filter's length."""
        return self.kernel.shape[-1] // 2
