"""Noise schedules: tables of ᾱ_1 … ᾱ_T, the share of the data's variance that is left, in float64 on the CPU.

Noise levels elsewhere are σ = √(1/ᾱ − 1), the noise that stands beside unscaled data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from gencli.errors import GencliError

ScheduleName = Literal["linear", "cosine", "sigmoid"]
MOST_BETA = 0.999  # keeps the last step of a schedule that reaches ᾱ = 0 finite


def linear(timesteps: int) -> Tensor:
    """DDPM's β from 1e-4 to 0.02 over 1,000 steps; other numbers of steps keep the total noise."""
    scale = 1000 / timesteps
    betas = torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64, device="cpu")
    return (1 - betas.clamp(max=MOST_BETA)).cumprod(0)


def cosine(timesteps: int, offset: float = 0.008) -> Tensor:
    """Improved DDPM (arXiv:2102.09672): ᾱ(u) ∝ cos²(π/2 · (u + s)/(1 + s))."""
    return _discretised(lambda u: ((u + offset) / (1 + offset) * math.pi / 2).cos() ** 2, timesteps)


def sigmoid(timesteps: int, start: float = -3.0, end: float = 3.0, temperature: float = 1.0) -> Tensor:
    """arXiv:2301.10972: ᾱ(u) is a falling sigmoid from `start` to `end`, scaled to go from 1 to 0."""
    low, high = (1 / (1 + math.exp(-edge / temperature)) for edge in (start, end))
    return _discretised(
        lambda u: (high - ((u * (end - start) + start) / temperature).sigmoid()) / (high - low), timesteps
    )


def _discretised(curve: Callable[[Tensor], Tensor], timesteps: int) -> Tensor:
    values = curve(torch.linspace(0, 1, timesteps + 1, dtype=torch.float64, device="cpu"))
    betas = (1 - values[1:] / values[:-1]).clamp(max=MOST_BETA)
    return (1 - betas).cumprod(0)


SCHEDULES: dict[str, Callable[[int], Tensor]] = {"linear": linear, "cosine": cosine, "sigmoid": sigmoid}


def shifted(alpha_bar: Tensor, side: int) -> Tensor:
    """Simple diffusion (arXiv:2301.11093): logSNR + 2 log(64 / side), so σ · side / 64; at 64 pixels nothing changes."""
    if side == 64:
        return alpha_bar
    factor = (side / 64) ** 2
    return alpha_bar / (alpha_bar + factor * (1 - alpha_bar))


def zero_terminal(alpha_bar: Tensor) -> Tensor:
    """arXiv:2305.08891: √ᾱ shifted and scaled so that the last is exactly 0 and the first stays."""
    root = alpha_bar.sqrt()
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def sigmas(alpha_bar: Tensor, prediction: str) -> Tensor:
    """The noise levels, descending; an infinite one is capped at 10⁴, or at twice the next where that is more.

    Raises:
        GencliError: if noise is to be predicted at a level without signal, where x0 cannot be had from it.
    """
    table = (1 / alpha_bar - 1).sqrt().flip(0)
    if table[0].isinf():
        if prediction == "eps":
            raise GencliError(
                "prediction eps with a schedule that ends without signal: x0 cannot be had from the noise there",
                "use --prediction v or x0, or leave out --zero-terminal",
            )
        table[0] = max(1e4, 2 * float(table[1]))
    return table
