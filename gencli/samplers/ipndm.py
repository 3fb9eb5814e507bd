"""Pseudo Numerical Methods for Diffusion Models on Manifolds (Liu et al., 2022). arXiv:2202.09778

Offers: sample

iPNDM (arXiv:2204.13902): the paper's pseudo linear multi-step method without its Runge–Kutta start. In the coordinates
x = x_0 + σ n the transfer part is an Euler step, with the direction ε = (x − D) / σ replaced by Adams' and Bashforth's

    ε′ = (55 ε_i − 59 ε_{i−1} + 37 ε_{i−2} − 9 ε_{i−3}) / 24,   x_s = x_t + (σ_s − σ_t) ε′

and their formulas of lower order where fewer are known. One evaluation a step. The coefficients are those of levels that are
evenly apart: of fourth order there, once started, and of second on any other smooth schedule. `deis` has coefficients that
follow the levels.

Ours: the last step, to σ = 0, is of first order, so that the sample is the last estimate D.

Errors: a number of steps below 1, or above the levels of a model with a table.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._multistep import remembered, weighted

ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


class Ipndm(DiffusionSampler):
    """Four directions combined, one evaluation a step; deterministic."""

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        order: int = opt(4, "directions that are combined", low=1, high=4)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        memory["x0"] = x0 = denoise(x, here)
        points = remembered(memory, here, there, (x - x0) / here, self.config.order)
        if there == 0:
            return x0
        return x + (there - here) * weighted(ADAMS_BASHFORTH[len(points) - 1], points)
