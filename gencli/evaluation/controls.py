"""Two controls that every model of items must beat, and the real items: a Gaussian fitted to the training items, and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from gencli.core import mix
from gencli.data._base import Data, Split

MOST_FITTED = 10_000  # training items behind the Gaussian


def real_items(data: Data, count: int) -> Tensor:
    """Held-out items."""
    part = data.split("test")
    return part.batch(torch.arange(min(count, len(part))))["x"]


def gaussian(data: Data, n: int, seed: int) -> Tensor:
    """Draws from the Gaussian with the mean and covariance of the training items, rounded to what the data are.

    x = mean + Xᵀ g / √(M − 1) with X the M centred items and g ~ N(0, 1) of M numbers has exactly their covariance, which
    is never formed.
    """
    items = _fitted(data.split("train"))
    flat = items.flatten(1).float().numpy()
    mean = flat.mean(0)
    draws = np.random.default_rng((seed, mix("gaussian"))).standard_normal((n, len(flat)), dtype=np.float32)
    made = mean + draws @ (flat - mean) / np.sqrt(max(1, len(flat) - 1))
    return _as_data(made.reshape(n, *items.shape[1:]), items)


def noise(data: Data, n: int, seed: int) -> Tensor:
    """Uniform noise between the least and the greatest value of the training items."""
    items = _fitted(data.split("train"))
    made = np.random.default_rng((seed, mix("noise"))).uniform(
        float(items.min()), float(items.max()), (n, *items.shape[1:])
    )
    return _as_data(made, items)


def _fitted(part: Split) -> Tensor:
    """Training items, evenly spread where there are many."""
    count = min(len(part), MOST_FITTED)
    return part.batch(torch.arange(count) * len(part) // count)["x"]


def _as_data(made: np.ndarray, like: Tensor) -> Tensor:
    found = torch.from_numpy(np.ascontiguousarray(made))
    return found.to(like.dtype) if like.is_floating_point() else found.round().clamp(0, 255).to(like.dtype)


CONTROLS: Mapping[str, Callable[[Data, int, int], Tensor]] = {"gaussian": gaussian, "uniform noise": noise}
