"""Applying Guidance in a Limited Interval (Kynkäänniemi et al., 2024). arXiv:2404.07724

Offers: guidance

    D = guided(x, σ)  if  low < σ ≤ high,  else  plain(x, σ)

At high noise guidance throws samples into a few modes, at low noise it changes nothing; outside the interval it costs no
second call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.config import Component, opt
from gencli.core import as_rows
from gencli.errors import GencliError
from gencli.guidance._base import Denoise


class Interval(Component):
    """One denoiser inside an interval of levels, another outside."""

    @dataclass(frozen=True)
    class Config:
        low: float = opt(0.0, "guided above this σ", low=0)
        high: float = opt(1e9, "guided up to this σ", low=0)

    def __init__(self, config: Config) -> None:
        if not config.low < config.high:  # nor if one of them is no number
            raise GencliError(
                f"guidance interval {config.low:g},{config.high:g} is empty", "give the smaller σ first, such as 0.2,5"
            )
        self.config = config

    def __call__(self, guided: Denoise, plain: Denoise) -> Denoise:
        return within(guided, plain, self.config.low, self.config.high)


def checked(low: float, high: float) -> tuple[float, float]:
    """The two, if they are an interval of levels."""
    config: Any = Interval.make({"low": low, "high": high}).config
    return config.low, config.high


def within(guided: Denoise, plain: Denoise, low: float, high: float) -> Denoise:
    """`guided` at levels in (low, high], `plain` elsewhere; where rows have levels of their own, each row by its own."""

    def chosen(x: Tensor, sigma: Tensor) -> Tensor:
        inside = (low < sigma) & (sigma <= high)
        if inside.all():
            return guided(x, sigma)
        if not inside.any():
            return plain(x, sigma)
        return torch.where(as_rows(inside, x).to(x.device), guided(x, sigma), plain(x, sigma))

    return chosen
