"""Training in a few lines, without a trainer: Adam with a cosine, for models that learn toy data within a second."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def fit(parameters: Iterable[Tensor], loss: Callable[[int], Tensor], steps: int, rate: float) -> None:
    """Lower `loss(step)` for so many steps."""
    optimiser = torch.optim.Adam(parameters, rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(steps):
        value = loss(step)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        schedule.step()
