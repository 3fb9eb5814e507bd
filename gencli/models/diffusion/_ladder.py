"""What score networks trained at a ladder of noise levels share: L sigmas σ_1 > … > σ_L in geometric progression, or one.

    loss = E_i ½ σ_i² ‖s(x + σ_i n, i) + n / σ_i‖² = E_i ½ ‖σ_i s + n‖²,   D = x + σ² s

summed over an item's numbers, so that a score of zero costs half of their count at every level. A network that takes images
sees them in [−1, 1], whatever range their codec gives them.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.special import ndtr

from gencli.core import Batch, Rng
from gencli.models.diffusion._family import DiffusionModel, rows


def geometric(begin: float, end: float, count: int) -> Tensor:
    """`count` levels from `begin` to `end`, float64 on the CPU; `end` alone if only one is asked for."""
    if count == 1:
        return torch.tensor([end], dtype=torch.float64, device="cpu")
    made = torch.linspace(math.log(begin), math.log(end), count, dtype=torch.float64, device="cpu").exp()
    made[0], made[-1] = begin, end
    return made


class LadderModel(DiffusionModel):
    """A subclass says its levels, and by `formulation.out` what the network predicts: σ² for the score, σ for σ times it."""

    process: Literal["vp", "ve"] = "ve"

    def index(self, sigma: Tensor) -> Tensor:
        """The rung nearest to σ on a logarithmic scale, 0 the largest."""
        table = self.levels
        assert table is not None
        rising = -(table[1:] * table[:-1]).sqrt().to(sigma.device)
        return torch.searchsorted(rising, -sigma.reshape(-1)).reshape(sigma.shape).double()

    def draw_sigma(self, n: int, rng: Rng) -> Tensor:
        assert self.levels is not None
        levels = self.levels if rng.device.type == "mps" else self.levels.to(rng.device)
        return levels[rng.integers((n,), len(levels)).to(levels.device)]

    def predict(self, x: Tensor, sigma: Tensor, **cond: Tensor) -> Tensor:
        return super().predict(self._centred(x), sigma, **cond)

    def _centred(self, x: Tensor) -> Tensor:
        if self.spec.x.range in (None, (-1.0, 1.0)):
            return x
        low, high = self.spec.x.range
        return (x - low) * (2 / (high - low)) - 1

    def errors(self, data: Tensor, noise: Tensor, sigma: Tensor, cond: Batch) -> Tensor:
        """`(N,)`: ½ ‖σ s + n‖², summed over dimensions."""
        x = data + rows(sigma, data) * noise
        scaled = rows(self.formulation.out(sigma) / sigma, data) * self.predict(x, sigma, **cond)
        return (scaled + noise).square().flatten(1).sum(1) / 2

    def uniform_start(self, noise: Tensor) -> Tensor:
        """Normal noise to noise spread evenly over the data's range."""
        assert self.spec.x.range is not None
        low, high = self.spec.x.range
        return low + (high - low) * ndtr(noise)
