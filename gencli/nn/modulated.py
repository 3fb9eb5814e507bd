"""Convolutions whose weights a style scales for each item: Analyzing and Improving the Image Quality of StyleGAN.

Karras et al., 2019, arXiv:1912.04958, section 2.2. For an item's style s, a number for each channel in,

    w′ = s w,   w″ = w′ / √(Σ w′² + 10⁻⁸),   y = w″ * x

the sum over all that an output channel reads, so that independent inputs of unit variance leave with unit variance. Written so,
every item has weights of its own. The same numbers without them, as a convolution is linear in its input and the divisor
belongs to the output channel:

    y = d (w * (s x)),   d = 1 / √(s² · Σₖ w² + 10⁻⁸)

One convolution with shared weights for the whole batch, and a product of matrices `(N, in)·(in, out)` for d.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from gencli.nn.equalised import EqualConv2d, EqualLinear

EPSILON = 1e-8


def modulated(
    x: Tensor, weight: Tensor, style: Tensor, convolve: Callable[[Tensor, Tensor], Tensor], demodulate: bool = True
) -> Tensor:
    """y from x `(N, in, H, W)`, w `(out, in, k, k)` and s `(N, in)`; `convolve(x, w)` is the linear map, resampled or not."""
    made = convolve(x * style[:, :, None, None].to(x.dtype), weight)
    if not demodulate:
        return made
    power = style.square() @ weight.square().sum((2, 3)).T
    return made * (power + EPSILON).rsqrt()[:, :, None, None].to(made.dtype)


class ModulatedConv(nn.Module):
    """An `EqualConv2d` whose style is an affine map of w, 1 on average at the start."""

    def __init__(self, style: int, inputs: int, outputs: int, kernel: int, demodulate: bool = True) -> None:
        super().__init__()
        self.demodulate = demodulate
        self.affine = EqualLinear(style, inputs, bias=1.0)
        self.conv = EqualConv2d(inputs, outputs, kernel, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(
        self, x: Tensor, w: Tensor, convolve: Callable[[Tensor, Tensor], Tensor], noise: Tensor | None = None
    ) -> Tensor:
        """`(N, outputs, …)` from `(N, inputs, …)` and w `(N, style)`, with noise that broadcasts and the bias."""
        made = modulated(x, self.conv.scaled, self.affine(w), convolve, self.demodulate)
        plus = self.bias[:, None, None] if noise is None else self.bias[:, None, None] + noise
        return made + plus.to(made.dtype)
