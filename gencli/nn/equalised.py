"""Layers whose weights start from N(0, 1) and are scaled where they are used: Progressive Growing of GANs.

Karras et al., 2017, arXiv:1710.10196, section 4:

    y = (g r / √fan_in) w x + r b,   w ~ N(0, 1 / r²)

with g a gain and r the layer's share of the learning rate (1; 0.01 in mapping networks). Adam's steps have one size for all
weights, so all layers then learn at one rate whatever their width; as the weights are drawn, outputs have g² times the variance
of their inputs. `pixel_norm` divides each position by the root mean square over its channels, x / √(mean x² + 10⁻⁸).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2
EPSILON = 1e-8


class EqualLinear(nn.Module):
    """`(…, inputs)` to `(…, outputs)`.

    Args:
        inputs: numbers in.
        outputs: numbers out.
        bias: what the bias starts from, None for none.
        gain: g.
        rate: r.
    """

    def __init__(
        self, inputs: int, outputs: int, bias: float | None = 0.0, gain: float = 1.0, rate: float = 1.0
    ) -> None:
        super().__init__()
        self.scale, self.rate = gain * rate / math.sqrt(inputs), rate
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(outputs, inputs), std=1 / rate))
        self.bias = None if bias is None else nn.Parameter(torch.full((outputs,), bias / rate))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, None if self.bias is None else self.bias * self.rate)


class EqualConv2d(nn.Module):
    """A convolution that keeps the sides, or whatever is done with its `scaled` weight."""

    def __init__(self, inputs: int, outputs: int, kernel: int, bias: bool = True, gain: float = 1.0) -> None:
        super().__init__()
        self.scale, self.padding = gain / math.sqrt(inputs * kernel**2), kernel // 2
        self.weight = nn.Parameter(nn.init.normal_(torch.empty(outputs, inputs, kernel, kernel)))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    @property
    def scaled(self) -> Tensor:
        """The weight as it is used."""
        return self.weight * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.scaled, self.bias, padding=self.padding)


def pixel_norm(x: Tensor) -> Tensor:
    """x with root mean square 1 over its channels (dimension 1)."""
    wide = x if x.dtype == torch.float64 else x.float()
    return x * (wide.square().mean(1, keepdim=True) + EPSILON).rsqrt().to(x.dtype)


def leaky(x: Tensor, gain: float = math.sqrt(2)) -> Tensor:
    """A leaky relu of slope 0.2; times √2 it keeps the mean square of a normal input to within 4 %."""
    return F.leaky_relu(x, SLOPE) * gain if gain != 1 else F.leaky_relu(x, SLOPE)
