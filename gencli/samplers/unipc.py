"""UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (Zhao, 2023). arXiv:2302.04867

Offers: sample

For d(x/σ) = D d(1/σ), from t to s, with D a polynomial in u = log(σ/t) / log(s/t) through the newest p estimates:

    x_s = (s / t) x_t + Σ_j w_j D_j,   Σ_j w_j u_j^k = m_k,   m_0 = 1 − s/t,   m_k = 1 + k m_{k−1} / log(s/t)

This is the predictor UniP-p. The corrector UniC-p repeats the step once the estimate at its end is known, with that point
among the others: no evaluation more, and one order more, p + 1. Estimates are not made again at the corrected x. With two
points the paper's B_2(h) puts m_1 = m_0 / 2 (with three and more B(h) cancels): then UniP-2 is the step of `dpmpp-2m`.

The first steps have as many points as there are; the last, to σ = 0, has one and is x_0 itself. Levels are even in log σ by
default, as in the paper's experiments with pixels.

Ours: the corrector is left out where something else has changed x since.

Errors: a number of steps below 1, or above the levels of a model with a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._levels import NoiseSchedule
from gencli.samplers._multistep import Points, nodes, remembered, straight, weighted, weights


class Unipc(DiffusionSampler):
    """A multi-step predictor and a corrector, with one evaluation a step; deterministic."""

    own: ClassVar[NoiseSchedule] = "logsnr"

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        order: int = opt(2, "points of the predictor", low=1, high=3)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        memory["x0"] = x0 = denoise(x, here)
        start, points, end = memory.get("step", (None, [], None))
        if x is end:
            x = _over(start, [*points, (float(here), x0)], here)
        points = remembered(memory, here, there, x0, self.config.order)
        end = straight(x, x0, here, there) if there == 0 else _over(x, points, there)
        memory["step"] = (x, points, end)
        return end


def _over(x: Tensor, points: Points, there: Tensor) -> Tensor:
    """x at `there` from x at the level of the first point."""
    here, s = points[0][0], float(there)
    moments = [1 - s / here]
    for k in range(1, len(points)):
        moments.append(1 + k * moments[-1] / math.log(s / here))
    if len(points) == 2:
        moments[1] = moments[0] / 2
    return s / here * x + weighted(weights(nodes(points, here, s), moments), points)
