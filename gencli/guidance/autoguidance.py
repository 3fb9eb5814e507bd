"""Guiding a Diffusion Model with a Bad Version of Itself (Karras et al., 2024). arXiv:2406.02507

Offers: guidance

    D = D_bad(x | c) + s (D(x | c) − D_bad(x | c))

The guide is the same method with less training or capacity, and the same conditions, those of them that it takes: what
separates the two is what the guide gets wrong. s = 1 is the model alone and costs no second call, s = 0 the guide alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import Component, opt
from gencli.core import Batch
from gencli.guidance._base import Denoise


class Autoguidance(Component):
    """A denoiser moved away from a worse one."""

    @dataclass(frozen=True)
    class Config:
        scale: float = opt(1.0, "guidance scale s; 1 = the model alone")

    def __init__(self, config: Config) -> None:
        self.config = config

    def __call__(self, denoise: Callable[..., Tensor], bad: Callable[..., Tensor], cond: Batch) -> Denoise:
        return away_from(denoise, bad, cond, self.config.scale)


def away_from(denoise: Callable[..., Tensor], bad: Callable[..., Tensor], cond: Batch, scale: float) -> Denoise:
    """`(x, sigma) -> x0` with the conditions inside."""
    if scale in (0.0, 1.0):
        alone = denoise if scale else bad
        return lambda x, sigma: alone(x, sigma, **cond)

    def both(x: Tensor, sigma: Tensor) -> Tensor:
        worse = bad(x, sigma, **cond)
        return torch.lerp(worse, denoise(x, sigma, **cond), scale)

    return both
