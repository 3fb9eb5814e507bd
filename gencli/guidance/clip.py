"""Estimates of x0 kept inside the data's range (Ho, Jain & Abbeel, 2020). arXiv:2006.11239

Offers: guidance

The outermost wrapper, in pixel space only: latents have no range.
"""

from __future__ import annotations

from gencli.config import Component, NoSettings
from gencli.guidance._base import Denoise


class Clip(Component):
    """`D.clamp(low, high)`."""

    def __init__(self, config: NoSettings) -> None:
        self.config = config

    def __call__(self, denoise: Denoise, span: tuple[float, float] | None) -> Denoise:
        return clipped(denoise, span)


def clipped(denoise: Denoise, span: tuple[float, float] | None) -> Denoise:
    """`denoise` with its estimate clamped to `span`; None leaves it alone."""
    if span is None:
        return denoise
    return lambda x, sigma: denoise(x, sigma).clamp(*span)
