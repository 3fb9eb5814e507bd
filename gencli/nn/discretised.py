"""The mass that a density on the line puts on each value of a grid: the bin of half a step to either side.

The outermost bins reach to infinity, so that the masses of all values sum to one. Everything is a logarithm, exact in both
tails, and has finite gradients there.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def discretised_gaussian(x: Tensor, mean: Tensor, spread: Tensor, span: tuple[float, float], width: float) -> Tensor:
    """log P of the grid value x: the Gaussian's mass within half a bin, the outermost bins reaching to infinity."""
    half = width / 2
    low = torch.where(x - half <= span[0], -math.inf, (x - half - mean) / spread)
    high = torch.where(x + half >= span[1], math.inf, (x + half - mean) / spread)
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)  # the lower tail keeps its digits
    below, above = _log_normal_cdf(low), _log_normal_cdf(high)
    return above + torch.log(-torch.expm1(below - above))


def _log_normal_cdf(z: Tensor) -> Tensor:
    """log Φ(z); the derivative of torch's `log_ndtr` overflows in its lower tail."""
    tail, body = z.clamp(max=-1), z.clamp(min=-1)
    scaled = torch.log(0.5 * torch.special.erfcx(-tail / math.sqrt(2))) - tail.square() / 2
    return torch.where(z < -1, scaled, torch.special.log_ndtr(body))


def discretised_logistic(x: Tensor, mean: Tensor, scale: Tensor, span: tuple[float, float], width: float) -> Tensor:
    """log P of the grid value x under a logistic distribution.

    With s the sigmoid and a < b the bin's ends, s(b) − s(a) = s(b) s(−a) (1 − exp(a − b)): three factors of which none
    cancels, so no tail needs another formula.
    """
    below, above = (x - width / 2 - mean) / scale, (x + width / 2 - mean) / scale
    first, last = x - width / 2 <= span[0], x + width / 2 >= span[1]
    inner = torch.log(-torch.expm1(-width / scale)).expand_as(below)
    return (
        torch.where(last, 0.0, F.logsigmoid(above))
        + torch.where(first, 0.0, F.logsigmoid(-below))
        + torch.where(first | last, 0.0, inner)
    )
