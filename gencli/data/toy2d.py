"""Points in the plane from five well-known shapes: 8 or 25 Gaussians, two moons, a checkerboard, a swiss roll.

Offers: points, label

Every shape has mean zero and root-mean-square coordinate one, by exact constants of its distribution (never by the
sample's own). `size` points for training and as many, drawn independently, for test. The label is the component of
`8-gaussians` and `25-gaussians`; the other shapes have none. Points are float32 `(N, 2)`, unbounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Field, Rng, Spec
from gencli.data._base import Data, Split

_NOISE = {
    "8-gaussians": 0.125,
    "25-gaussians": 0.05,
    "moons": 0.1,
    "swiss-roll": 0.08,
}  # standard deviation, before scaling to unit size
COMPONENTS = {"8-gaussians": 8, "25-gaussians": 25}


class Toy2d(Data):
    """Five shapes, by name and seed."""

    @dataclass(frozen=True)
    class Config:
        shape: Literal["8-gaussians", "25-gaussians", "moons", "checkerboard", "swiss-roll"] = opt(
            "8-gaussians", "distribution the points come from"
        )
        size: int = opt(10_000, "number of training points, and of test points", low=1, high=10_000_000)
        seed: int = opt(0, "seed of the points", low=0)
        unconditional: bool = opt(False, "leave out the labels that Gaussians have")

    kind: ClassVar[str] = "points"

    @property
    def spec(self) -> Spec:
        count = COMPONENTS.get(self.config.shape, 8)
        label = Field("label", (), vocab=count, names=tuple(str(i) for i in range(count)))
        return Spec(Field("points", (2,)), {"label": label} if self._labelled else {})

    @property
    def _labelled(self) -> bool:
        return self.config.shape in COMPONENTS and not self.config.unconditional

    def load(self) -> dict[str, Split]:
        return {name: self._split(name) for name in ("train", "test")}

    def _split(self, name: str) -> Split:
        rng = Rng.batch("toy2d", self.config.shape, self.config.seed, name, total=self.config.size)
        points, label = draw(self.config.shape, rng)
        ids = [f"toy2d/{name}/{i}" for i in range(len(points))]
        return Split(points.float().numpy(), {"label": label} if self._labelled else {}, ids)


def draw(shape: str, rng: Rng) -> tuple[Tensor, Tensor]:
    """Points `(N, 2)` in float64 and the component `(N,)` each comes from (zeros where there is but one)."""
    n = len(rng)
    noise = rng.at("noise").normal((n, 2), torch.float64) * _NOISE.get(shape, 0.0)
    u = rng.at("place").uniform((n, 2), torch.float64)
    which = rng.at("component").integers((n,), COMPONENTS.get(shape, 8))
    if shape == "8-gaussians":
        angle = which * (math.pi / 4)
        points = torch.stack([angle.cos(), angle.sin()], -1) + noise
        return points / math.sqrt(0.5 + _NOISE[shape] ** 2), which
    if shape == "25-gaussians":  # a grid of five by five, one apart
        points = torch.stack([which // 5, which % 5], -1) - 2 + noise
        return points / math.sqrt(2 + _NOISE[shape] ** 2), which
    if shape == "checkerboard":  # eight of the sixteen unit squares of [-2, 2]²
        column, row = which // 2, (which % 2) * 2 + (which // 2) % 2
        points = torch.stack([column + u[:, 0], row + u[:, 1]], -1) - 2
        return points / math.sqrt(4 / 3), torch.zeros_like(which)
    curve = _moons if shape == "moons" else _roll
    arm = which % 2
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000  # the curve's own moments, by quadrature
    whole = torch.cat([curve(grid, torch.zeros_like(grid)), curve(grid, torch.ones_like(grid))])
    centre = whole.mean(0)
    scale = ((whole - centre).square().mean() + _NOISE[shape] ** 2).sqrt()
    return (curve(u[:, 0], arm.double()) + noise - centre) / scale, torch.zeros_like(which)


def _moons(u: Tensor, arm: Tensor) -> Tensor:
    """Two half circles, the second turned over and moved by (1, 1/2)."""
    t, sign = math.pi * u, 1 - 2 * arm
    return torch.stack([sign * t.cos() + arm, sign * t.sin() + arm / 2], -1)


def _roll(u: Tensor, arm: Tensor) -> Tensor:
    """A spiral of one and a half turns."""
    t = 1.5 * math.pi * (1 + 2 * u)
    return torch.stack([t * t.cos(), t * t.sin()], -1) / (4.5 * math.pi)
