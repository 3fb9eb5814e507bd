"""Points in the plane from five well-known shapes: 8 or 25 Gaussians, two moons, a checkerboard, a swiss roll.

Offers: points, label

Every shape has mean zero and root-mean-square coordinate one, by exact constants of its distribution (never by the
sample's own). `size` points for training and as many, drawn independently, for test. The label is the component of
`8-gaussians` and `25-gaussians`; the other shapes have none. Points are float32 `(N, 2)`, unbounded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
_QUADRATURE, _ROWS = 2000, 512  # places along an arm of a curve; points whose density is taken together


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

    def log_density(self, x: Tensor) -> Tensor:
        """log p `(N,)` of points `(N, 2)`, exact, in nats."""
        return log_density(self.config.shape, x)

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
    centre, scale = _frame(shape)
    if shape in COMPONENTS:
        return (_centres(shape)[which] + noise) / scale, which
    if shape == "checkerboard":  # eight of the sixteen unit squares of [-2, 2]²
        column, row = which // 2, (which % 2) * 2 + (which // 2) % 2
        points = torch.stack([column + u[:, 0], row + u[:, 1]], -1) - 2
        return points / scale, torch.zeros_like(which)
    arm = which % 2
    return (_CURVES[shape](u[:, 0], arm.double()) + noise - centre) / scale, torch.zeros_like(which)


def log_density(shape: str, x: Tensor) -> Tensor:
    """log p `(N,)` of points `(N, 2)` in float64: exact, for moons and roll by quadrature along the curve."""
    centre, scale = _frame(shape)
    y = x.double().cpu() * scale + centre
    if shape == "checkerboard":
        column, row = (y + 2).floor().unbind(1)
        inside = ((y >= -2) & (y < 2)).all(1) & ((column + row) % 2 == 0)
        return torch.where(inside, 2 * scale.log() - math.log(8), -math.inf)
    centres = _centres(shape) if shape in COMPONENTS else _along(_CURVES[shape], _QUADRATURE)
    spread = _NOISE[shape] / scale
    log_mass = (2 * math.pi * spread.square() * len(centres)).log()
    at = (centres - centre) / scale
    rows = (x.double().cpu()[i : i + _ROWS] for i in range(0, len(x), _ROWS))
    bells = [torch.logsumexp(-0.5 * torch.cdist(part, at).square() / spread.square(), 1) for part in rows]
    return torch.cat(bells) - log_mass


def _frame(shape: str) -> tuple[Tensor, Tensor]:
    """The mean `(2,)` and the root-mean-square coordinate `()` of a shape as it is made."""
    if shape in _CURVES:  # the curve's own moments, by quadrature
        whole = _along(_CURVES[shape], 100_000)
        centre = whole.mean(0)
        return centre, ((whole - centre).square().mean() + _NOISE[shape] ** 2).sqrt()
    square = {"8-gaussians": 0.5, "25-gaussians": 2.0, "checkerboard": 4 / 3}[shape] + _NOISE.get(shape, 0.0) ** 2
    return torch.zeros(2, dtype=torch.float64), torch.tensor(math.sqrt(square), dtype=torch.float64)


def _centres(shape: str) -> Tensor:
    """Of the Gaussians `(K, 2)`: on the unit circle, or on a grid of five by five, one apart."""
    which = torch.arange(COMPONENTS[shape])
    if shape == "8-gaussians":
        angle = which * (math.pi / 4)
        return torch.stack([angle.cos(), angle.sin()], -1).double()
    return torch.stack([which // 5, which % 5], -1).double() - 2


def _along(curve: Callable[[Tensor, Tensor], Tensor], count: int) -> Tensor:
    """Points `(2 count, 2)` evenly along both arms of a curve."""
    grid = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.cat([curve(grid, torch.zeros_like(grid)), curve(grid, torch.ones_like(grid))])


def _moons(u: Tensor, arm: Tensor) -> Tensor:
    """Two half circles, the second turned over and moved by (1, 1/2)."""
    t, sign = math.pi * u, 1 - 2 * arm
    return torch.stack([sign * t.cos() + arm, sign * t.sin() + arm / 2], -1)


def _roll(u: Tensor, arm: Tensor) -> Tensor:
    """A spiral of one and a half turns."""
    t = 1.5 * math.pi * (1 + 2 * u)
    return torch.stack([t * t.cos(), t * t.sin()], -1) / (4.5 * math.pi)


_CURVES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"moons": _moons, "swiss-roll": _roll}
