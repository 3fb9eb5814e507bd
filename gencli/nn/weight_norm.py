"""Weight Normalization (Salimans & Kingma, 2016). arXiv:1602.07868

A convolution whose filters are w = g v / |v|, with v of any length and g learned, or without g.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class WeightNormConv2d(nn.Module):
    """A convolution of odd kernel that keeps the image's size.

    Args:
        ins, outs: channels.
        kernel: side of the filters.
        magnitude: whether the lengths of the filters are learned; else they are 1.
        bias: whether a number is added to each channel.
    """

    magnitude: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, ins: int, outs: int, kernel: int, magnitude: bool = True, bias: bool = True) -> None:
        super().__init__()
        spread = math.sqrt(2 / ins)
        self.direction = nn.Parameter(torch.empty(outs, ins, kernel, kernel).uniform_(-spread, spread))
        start = spread * math.sqrt(ins * kernel**2 / 12)  # the order of a direction's own length
        self.register_parameter("magnitude", nn.Parameter(torch.full((outs,), start)) if magnitude else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(outs)) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.direction / self.direction.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        if self.magnitude is not None:
            weight = weight * self.magnitude.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias, padding=self.direction.shape[-1] // 2)
