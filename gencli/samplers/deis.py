"""Fast Sampling of Diffusion Models with Exponential Integrator (Zhang & Chen, 2022). arXiv:2204.13902

Offers: sample

tAB-DEIS: the direction ε = (x − D) / σ is a polynomial in time through the newest p of its values, and dx = ε dσ is integrated
exactly. With u = log(σ/t) / log(s/t) as the time, from σ = t to σ = s:

    x_s = x_t + Σ_j w_j ε_j,   Σ_j w_j u_j^k = m_k,   m_0 = s − t,   m_k = s − k m_{k−1} / log(s/t)

One evaluation a step, order p. Its weights follow the levels, unlike those of `ipndm`. The first steps have as many points as
there are; that costs an error of second order, once, which is small where noise drowns the data.

Ours: log σ as the time of the polynomials, the only one that every model has (the paper: the model's t, or σ itself); the last
step, to σ = 0, has one point and is x_0 itself.

Errors: a number of steps below 1, or above the levels of a model with a table.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._multistep import nodes, remembered, weighted, weights


class Deis(DiffusionSampler):
    """Exact integrals of extrapolated directions, one evaluation a step; deterministic."""

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        order: int = opt(3, "points of the polynomial", low=1, high=4)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        memory["x0"] = x0 = denoise(x, here)
        points = remembered(memory, here, there, (x - x0) / here, self.config.order)
        if there == 0:
            return x0
        t, s = float(here), float(there)
        moments = [s - t]
        for k in range(1, len(points)):
            moments.append(s - k * moments[-1] / math.log(s / t))
        return x + weighted(weights(nodes(points, t, s), moments), points)
