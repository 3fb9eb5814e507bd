"""Score-Based Generative Modeling through SDEs: predictor-corrector sampling (Song et al., 2020). arXiv:2011.13456

Offers: sample

The predictor is a step of `reverse-sde` to the next level; there the corrector brings x closer to that level's density by
steps of Langevin dynamics, whose size follows from a ratio r of noise to step (`snr`):

    x ← x + ε g + √(2ε) z,      g = (D(x, σ) − x) / σ²,      ε = 2 (r ‖z‖ / ‖g‖)²

The update is the same in the coordinates of VP as in those of VE, x = x_0 + σ n. At σ = 0 there is no corrector, so that
`corrector` steps cost steps + corrector (steps − 1) evaluations; with 0 it is `reverse-sde`.

Ours: each image has norms of its own, where the official code averages them over the batch and an image depends on its
batch-mates (in d dimensions this leaves 2/d more variance); the factor 1 − β_i of VP's ε is left out; the corrector acts
after the predictor, as in the paper's algorithm (the official code begins with it). The paper takes 1,000 steps and r = 0.16
on CIFAR-10.

Errors: as `reverse-sde`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Model, Rng, Spec, as_rows
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import Memory
from gencli.samplers.reverse_sde import ReverseSde


class PredictorCorrector(ReverseSde):
    """The reverse SDE, corrected at every level."""

    @dataclass(frozen=True)
    class Config(ReverseSde.Config):
        steps: int = opt(50, "steps from noise to data; the paper's 1000")
        corrector: int = opt(1, "steps of Langevin dynamics at each level", low=0)
        snr: float = opt(0.16, "r, the length of a corrector's step over that of its noise", low=0)

    def evaluations(self, model: Model, spec: Spec) -> int:
        steps = len(self.levels(model)) - 1
        return steps + self.config.corrector * (steps - 1)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        x = super().step(denoise, x, here, there, memory, rng)
        for i in range(self.config.corrector if there > 0 else 0):
            memory["x0"] = x0 = denoise(x, there)
            x = corrected(x, x0, there, rng.at("corrector", i).normal(x.shape).to(x), self.config.snr)
        return x


def corrected(x: Tensor, x0: Tensor, sigma: Tensor, z: Tensor, snr: float) -> Tensor:
    """A step of Langevin dynamics of signal-to-noise ratio `snr`, each row's own; a row whose score is 0 stays."""
    uphill = (x0 - x) / sigma**2
    score, noise = (torch.linalg.vector_norm(value.flatten(1), dim=1) for value in (uphill, z))
    size = torch.where(score > 0, 2 * (snr * noise / score) ** 2, 0.0)
    size = as_rows(size, x)
    return x + size * uphill + (2 * size).sqrt() * z
