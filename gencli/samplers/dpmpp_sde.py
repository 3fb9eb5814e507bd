"""DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022). arXiv:2211.01095

Offers: sample

The single-step method of DPM-Solver++ for the SDE of `dpmpp-2m-sde` (`sample_dpmpp_sde` of k-diffusion): half a step in log σ,
to m = √(t s), with the estimate here, then the whole with the estimate found there. With E the exact solution for an
estimate that stays as it is,

    E(x, D; t, s) = D + (s / t)^(1+η) (x − D),   x_m = E(x_t, D(x_t; t); t, m) + n_m,   x_s = E(x_t, D(x_m; m); t, s) + n_s

and n_m, n_s the noise of one Brownian path up to m and up to s: n_s = (s / m)^(1+η) n_m + s √(1 − (s / m)^(2η)) z. Two
evaluations a step and one in the last, to σ = 0, which adds no noise. η = 0 is deterministic and of second order
(DPM-Solver++(2S)).

Ours: the correlation of n_m and n_s is the SDE's, where k-diffusion takes that of a Brownian motion over σ; η as in
`dpmpp-2m-sde`; levels evenly in σ^(1/7) by default.

Errors: a denoiser whose estimate is not a mean; a number of steps below 1, or above the levels of a model with a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gencli.config import opt
from gencli.core import Rng
from gencli.guidance._base import Denoise
from gencli.samplers._diffusion import DiffusionSampler, Memory
from gencli.samplers._multistep import straight


class DpmppSde(DiffusionSampler):
    """The midpoint rule, with fresh noise in every step but the last."""

    accepts: ClassVar[tuple[str, ...]] = ("mean",)
    calls = 2

    @dataclass(frozen=True)
    class Config(DiffusionSampler.Config):
        steps: int = opt(25, "steps from noise to data; each but the last takes two evaluations")
        eta: float = opt(1.0, "strength of the noise: 0 = none, 1 = the paper's SDE", low=0)

    def step(self, denoise: Denoise, x: Tensor, here: Tensor, there: Tensor, memory: Memory, rng: Rng) -> Tensor:
        memory["x0"] = x0 = denoise(x, here)
        if there == 0:
            return x0
        middle = (here * there).sqrt()
        fall = (middle / here) ** self.config.eta  # the same in both halves
        spread = (1 - fall**2).sqrt()
        first, second = (rng.at(half).normal(x.shape).to(x) for half in ("first", "second"))
        early = middle * spread * first
        memory["x0"] = x0 = denoise(straight(x, x0, here, middle * fall) + early, middle)
        late = (there / middle) * fall * early + there * spread * second
        return straight(x, x0, here, there * fall**2) + late
