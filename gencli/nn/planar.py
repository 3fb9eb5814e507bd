"""Planar and radial maps (Rezende & Mohamed, 2015, arXiv:1505.05770), for rows `(N, D)`.

    planar   f(z) = z + û tanh(wᵀz + b),         log |det| = log (1 + wᵀû (1 − tanh²(wᵀz + b)))
    radial   f(z) = z + β̂ h(α, r) (z − z₀),      log |det| = (D − 1) log (1 + β̂ h) + log (1 + β̂ α h²)

with r = ‖z − z₀‖ and h = 1 / (α + r). Both are invertible for wᵀû > −1 and β̂ > −α, which their appendix ensures by
û = u + (m(wᵀu) − wᵀu) w / ‖w‖² and β̂ = −α + m(β).

Ours: 1 + m(a) = ε + (1 − ε) log(1 + (e − 1) eᵃ), ε = 1e-4, so that u = 0 is the identity (the paper's −1 + log(1 + eᵃ) is
−0.31 there) and slopes stay clear of zero; β̂ = α m(β). Of the inverses, which the paper does not give, a radial map's r is the
root of a quadratic; a planar map's wᵀz is that of a rising function of one number, found to the precision of floats, with the
derivatives of an implicit function. The numbers of a map are learned, or an affine function of a context, as of an inference
network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.nn.bijection import Bijection

LEAST = 1e-4
_BISECTIONS, _POLISHES = 32, 3


class Numbers(nn.Module):
    """Learned numbers `(1, P)`, plus a linear function of a context, from zero, `(N, P)`."""

    def __init__(self, start: Tensor, context: int) -> None:
        super().__init__()
        self.start = nn.Parameter(start)
        self.shift = nn.Linear(context, len(start), bias=False) if context else None
        if self.shift is not None:
            nn.init.zeros_(self.shift.weight)

    def forward(self, context: Tensor | None) -> Tensor:
        if self.shift is None or context is None:
            assert self.shift is None, "these numbers depend on a context"
            return self.start[None]
        return self.start + self.shift(context)


def above_zero(a: Tensor) -> Tensor:
    """1 + m(a): rises from ε, is 1 at 0, and grows like a."""
    return LEAST + (1 - LEAST) * F.softplus(a + math.log(math.e - 1))


class Planar(Bijection):
    """A ridge: rows move along û by what they are across a plane."""

    def __init__(self, dim: int, context: int = 0) -> None:
        super().__init__()
        self.dim = dim
        start = torch.zeros(2 * dim + 1)
        nn.init.normal_(start[dim:-1], std=1 / math.sqrt(dim))
        nn.init.normal_(start[-1:])
        self.numbers = Numbers(start, context)

    def parts(self, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """û, w, b and 1 + wᵀû, each `(N or 1, D or 1)`."""
        u, w, b = self.numbers(context).split([self.dim, self.dim, 1], dim=1)
        along = (w * u).sum(1, keepdim=True)
        margin = above_zero(along)
        tiny = torch.finfo(w.dtype).tiny
        return u + (margin - 1 - along) * w / w.square().sum(1, keepdim=True).clamp(min=tiny), w, b, margin

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, margin = self.parts(context)
        h = ((w * x).sum(1, keepdim=True) + b).tanh()
        return x + u * h, _log_slope(h, margin)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        u, w, b, margin = self.parts(context)
        h = _across((w * y).sum(1, keepdim=True) + b, margin).tanh()
        return y - u * h, -_log_slope(h, margin)


def _log_slope(h: Tensor, margin: Tensor) -> Tensor:
    """log (1 + wᵀû (1 − h²)), without cancellation where wᵀû is close to −1."""
    return (h.square() + margin * (1 - h.square())).log().squeeze(1)


def _across(goal: Tensor, margin: Tensor) -> Tensor:
    """The t with t + (margin − 1) tanh t = goal; each row finds its own, whatever the others are."""
    pull = margin - 1
    with torch.no_grad():
        low, high = goal - pull.abs(), goal + pull.abs()
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            above = middle + pull * middle.tanh() > goal
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        t = (low + high) / 2
        for _ in range(_POLISHES):
            t = t - _miss(t, pull, goal) / _slope(t, margin)
    return t - _miss(t, pull, goal) / _slope(t, margin)  # carries the gradients of goal and pull


def _miss(t: Tensor, pull: Tensor, goal: Tensor) -> Tensor:
    return t + pull * t.tanh() - goal


def _slope(t: Tensor, margin: Tensor) -> Tensor:
    h = t.tanh().square()
    return (h + margin * (1 - h)).detach().clamp(min=torch.finfo(t.dtype).eps)


class Radial(Bijection):
    """A bump: rows move to or from a point z₀, the closer the more."""

    def __init__(self, dim: int, context: int = 0) -> None:
        super().__init__()
        self.dim = dim
        start = torch.zeros(dim + 2)
        nn.init.normal_(start[:dim])
        self.numbers = Numbers(start, context)

    def parts(self, context: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """z₀, α and 1 + m(β), each `(N or 1, D or 1)`."""
        centre, raw, beta = self.numbers(context).split([self.dim, 1, 1], dim=1)
        return centre, above_zero(raw), above_zero(beta)

    def forward(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, alpha, margin = self.parts(context)
        r = _length(x - centre)
        return centre + (x - centre) * _stretch(r, alpha, margin), self._log_det(r, alpha, margin)

    def inverse(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        centre, alpha, margin = self.parts(context)
        reach = _length(y - centre)  # r² + (α (1 + m) − reach) r = α reach
        half = (alpha * margin - reach) / 2
        root = (half.square() + alpha * reach).sqrt()
        r = torch.where(half > 0, alpha * reach / (half.abs() + root), half.abs() + root)
        return centre + (y - centre) / _stretch(r, alpha, margin), -self._log_det(r, alpha, margin)

    def _log_det(self, r: Tensor, alpha: Tensor, margin: Tensor) -> Tensor:
        nearness = alpha / (alpha + r)  # α h
        outward = (1 - nearness.square()) + margin * nearness.square()
        return ((self.dim - 1) * _stretch(r, alpha, margin).log() + outward.log()).squeeze(1)


def _stretch(r: Tensor, alpha: Tensor, margin: Tensor) -> Tensor:
    """1 + β̂ h = (r + α (1 + m)) / (α + r)."""
    return (r + alpha * margin) / (alpha + r)


def _length(x: Tensor) -> Tensor:
    """‖x‖ `(N, 1)`, with a derivative of zero at zero."""
    return x.square().sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny).sqrt()
