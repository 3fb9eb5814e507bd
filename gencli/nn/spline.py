"""Monotonic rational-quadratic splines (Durkan, Bekasov, Murray & Papamakarios, 2019). arXiv:1906.04032

Within [−B, B] K bins, each a quotient of quadratics between knots (x_k, y_k) with slopes δ_k; outside the identity, to which
the outermost slopes, one, join it smoothly. With ξ = (x − x_k) / w_k, s_k = h_k / w_k and w, h a bin's sides,

    y = y_k + h_k (s_k ξ² + δ_k ξ(1−ξ)) / (s_k + (δ_k+1 + δ_k − 2 s_k) ξ(1−ξ))

Widths and heights are softmaxes over the bins with a least share of 1e-3, inner slopes softplus with a least 1e-3: 3K − 1
parameters. Ours: slopes are shifted so that parameters of zero are the identity, as in the authors' later code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.nn.univariate import Univariate

LEAST = 1e-3


class Spline(Univariate):
    """K bins within [−bound, bound]."""

    def __init__(self, bins: int, bound: float) -> None:
        self.bins, self.bound, self.numbers = bins, bound, 3 * bins - 1

    def knots(self, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x and y of the knots and the slopes there, each `(…, K + 1)`."""
        wide, high, steep = given.split([self.bins, self.bins, self.bins - 1], dim=-1)
        slopes = LEAST + F.softplus(steep + math.log(math.expm1(1 - LEAST)))
        return self._edges(wide), self._edges(high), F.pad(slopes, (1, 1), value=1.0)

    def _edges(self, raw: Tensor) -> Tensor:
        share = LEAST + (1 - LEAST * self.bins) * raw.softmax(-1)
        inner = self.bound * (2 * share.cumsum(-1)[..., :-1] - 1)
        return F.pad(F.pad(inner, (1, 0), value=-self.bound), (0, 1), value=self.bound)

    def forward(self, x: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.abs() < self.bound
        y, log_slope = rational_quadratic(torch.where(inside, x, 0.0), *self.knots(given))
        return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)

    def inverse(self, y: Tensor, given: Tensor) -> tuple[Tensor, Tensor]:
        inside = y.abs() < self.bound
        x, log_slope = inverse_rational_quadratic(torch.where(inside, y, 0.0), *self.knots(given))
        return torch.where(inside, x, y), torch.where(inside, log_slope, 0.0)


def rational_quadratic(x: Tensor, xs: Tensor, ys: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """y and log dy/dx of the spline through knots `(…, K + 1)`, x within them."""
    left, width, low, height, first, second = _bin(x, xs, xs, ys, slopes)
    part = (x - left) / width
    both, steep = part * (1 - part), height / width
    below = steep + (second + first - 2 * steep) * both
    return low + height * (steep * part.square() + first * both) / below, _log_slope(part, first, second, steep, below)


def inverse_rational_quadratic(y: Tensor, xs: Tensor, ys: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
    """x and log dx/dy: the root of a quadratic in the paper's form, which does not cancel."""
    left, width, low, height, first, second = _bin(y, ys, xs, ys, slopes)
    up, steep = y - low, height / width
    bend = second + first - 2 * steep
    a = height * (steep - first) + up * bend
    b = height * first - up * bend
    c = -steep * up
    part = 2 * c / (-b - (b.square() - 4 * a * c).clamp(min=0).sqrt())
    below = steep + bend * part * (1 - part)
    return left + part * width, -_log_slope(part, first, second, steep, below)


def _log_slope(part: Tensor, first: Tensor, second: Tensor, steep: Tensor, below: Tensor) -> Tensor:
    above = second * part.square() + 2 * steep * part * (1 - part) + first * (1 - part).square()
    return 2 * steep.log() + above.log() - 2 * below.log()


def _bin(value: Tensor, edges: Tensor, xs: Tensor, ys: Tensor, slopes: Tensor) -> tuple[Tensor, ...]:
    """Left end, width, lower end, height and both slopes of the bin of `edges` that holds `value`."""
    index = (value[..., None] >= edges[..., 1:-1]).sum(-1, keepdim=True)  # (…, 1)

    def at(table: Tensor, step: int = 0) -> Tensor:
        return table.expand(*value.shape, -1).gather(-1, index + step).squeeze(-1)

    left, low = at(xs), at(ys)
    return left, at(xs, 1) - left, low, at(ys, 1) - low, at(slopes), at(slopes, 1)
