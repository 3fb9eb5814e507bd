"""DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022). arXiv:2211.01095

Offers: sample

DPM-Solver++(2M), the paper's algorithm 2, for d(x/σ) = D d(1/σ). With h the length of a step in −log σ, from t to s, and D̃ the
estimate of the step before, whose length was h̃:

    D′ = D + (h / (2 h̃)) (D − D̃),   x_s = D′ + (s / t) (x_t − D′)

One evaluation a step, second order; the estimate half a step ahead (`midpoint`) is extrapolated from the last two. The first
step and the last, to σ = 0, are of first order (D′ = D), and so is one after a jump to another level.

Ours: levels evenly in σ^(1/7) by default, where the paper has them evenly in log σ (`logsnr`) or in time (`model`).

Errors: a number of steps below 1, or above the levels of a model with a table.
"""

from __future__ import annotations

from torch import Tensor

from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._multistep import extrapolated, remembered, straight


class Dpmpp2m(DiffusionSampler):
    """Second order with one evaluation a step, deterministic."""

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        memory["x0"] = x0 = denoise(x, here)
        ahead = extrapolated(remembered(memory, here, there, x0, 2), there)
        return straight(x, ahead, here, there)
