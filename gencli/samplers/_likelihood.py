"""Densities of any denoiser by its probability-flow ODE, and data on a grid made continuous for them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gencli.core import Batch, Field, Rng, full_precision
from gencli.samplers._ode import log_prob


def flow_log_prob(
    model: Any,
    x: Tensor,
    rng: Rng,
    cond: Batch | None = None,
    probes: int = 1,
    divergence: Literal["hutchinson", "exact"] = "hutchinson",
) -> tuple[Tensor, Tensor]:
    """log p(x) `(N,)` in nats of any denoiser by its probability-flow ODE, and the network evaluations of each item."""
    table = model.levels
    low, high = (model.sigma_min, model.sigma_max) if table is None else (float(table[-1]), float(table[0]))
    scale = float(model.start(torch.ones(1, 1, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)))
    with full_precision(x.device):
        x = x.double() if x.device.type != "mps" else x

        def denoise(inner: Tensor, sigma: Tensor) -> Tensor:
            return model.denoise(inner, sigma, **(cond or {}))

        return log_prob(denoise, x, low, high, scale, rng, divergence, probes)


def spread_over_bins(x: Tensor, field: Field, rng: Rng) -> Tensor:
    """Data on a grid with uniform noise over their bins; data without a grid as they are."""
    if field.vocab is None or field.range is None:
        return x
    width = (field.range[1] - field.range[0]) / (field.vocab - 1)
    return x + (rng.uniform(x.shape).to(x) - 0.5) * width
