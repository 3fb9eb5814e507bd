"""Classifier-Free Diffusion Guidance (Ho & Salimans, 2022). arXiv:2207.12598

Offers: guidance

    D = D(x) + s (D(x | c) − D(x))

s = 1 is the conditional model and costs no second call; the paper's w is s − 1. x0 and ε are related by an affine map at
a fixed level, so guiding either is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import Component, opt
from gencli.core import Batch
from gencli.guidance._base import Denoise


class Cfg(Component):
    """A denoiser made of one denoiser with and without its condition."""

    @dataclass(frozen=True)
    class Config:
        scale: float = opt(1.0, "guidance scale s; 1 = conditional, 0 = unconditional")

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, denoise: Callable[..., Tensor], cond: Batch) -> Denoise:
        return guided(denoise, cond, self.config.scale)


def guided(denoise: Callable[..., Tensor], cond: Batch, scale: float) -> Denoise:
    """`(x, sigma) -> x0` with the conditions inside."""
    if not cond or scale == 1.0:
        return lambda x, sigma: denoise(x, sigma, **cond)
    if scale == 0.0:
        return lambda x, sigma: denoise(x, sigma)

    def both(x: Tensor, sigma: Tensor) -> Tensor:
        without = denoise(x, sigma)
        return torch.lerp(without, denoise(x, sigma, **cond), scale)

    return both
