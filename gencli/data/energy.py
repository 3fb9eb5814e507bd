"""Points in the plane drawn exactly from energies that flows are fitted to: p ∝ exp(−U), U1 to U4 and two Gaussians.

Offers: points

The energies are those of `nn/energies.py` (Rezende & Mohamed, arXiv:1505.05770, table 1), in the paper's units: nothing is
scaled. A point is a cell of a grid of 1,000 × 1,000 over [−7, 7]², drawn by its mass, and a uniform place in it; the cells are
0.014 wide, an energy's least deviation 0.35. `size` points for training and as many, drawn independently, for test. They are
what `--target` of a flow is compared with, and data like any other. Points are float32 `(N, 2)`, unbounded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Field, Rng, Spec
from gencli.data._base import Data, Split
from gencli.nn.energies import ENERGIES, REACH, EnergyName

_SIDE = 1000


class Energy(Data):
    """Exact draws of an energy's density."""

    @dataclass(frozen=True)
    class Config:
        energy: EnergyName = opt("u2", "the energy that the points come from")
        size: int = opt(10_000, "number of training points, and of test points", low=1, high=10_000_000)
        seed: int = opt(0, "seed of the points", low=0)

    kind: ClassVar[str] = "points"

    @property
    def spec(self) -> Spec:
        return Spec(Field("points", (2,)))

    def load(self) -> dict[str, Split]:
        return {name: self._split(name) for name in ("train", "test")}

    def _split(self, name: str) -> Split:
        rng = Rng.batch("energy", self.config.energy, self.config.seed, name, total=self.config.size)
        made = draw(self.config.energy, rng)
        return Split(made.float().numpy(), {}, [f"energy/{name}/{i}" for i in range(len(made))])


def draw(energy: str, rng: Rng) -> Tensor:
    """Points `(N, 2)` in float64."""
    n, width = len(rng), 2 * REACH / _SIDE
    middle = (torch.arange(_SIDE, dtype=torch.float64) + 0.5) * width - REACH
    edges = (-ENERGIES[energy].at(torch.cartesian_prod(middle, middle))).exp().cumsum(0)
    u = rng.at("cell").uniform((n,), torch.float64) * edges[-1]
    cell = torch.searchsorted(edges, u, right=True).clamp(max=_SIDE**2 - 1)
    corner = torch.stack([cell // _SIDE, cell % _SIDE], 1) * width - REACH
    return corner + width * rng.at("place").uniform((n, 2), torch.float64)
