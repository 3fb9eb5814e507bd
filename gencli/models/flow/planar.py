"""Variational Inference with Normalizing Flows: planar flows (Rezende & Mohamed, 2015). arXiv:1505.05770

Offers: sample, exact density

    f(z) = z + û tanh(wᵀz + b),   log |det| = log (1 + wᵀû (1 − tanh²(wᵀz + b))),   K of them in turn

û keeps wᵀû above −1 (`nn/planar.py`, which also has the inverse). Towards an energy, `--target energy-u2`, f maps noise to
points as in the paper, and reverse KL is minimised. Ours: on data f maps points to noise, since it is their density that is
needed, and a sample is a root for each layer; with `classes`, the numbers of a layer are those of the class. At first all
layers are the identity. With `linear` the maps bend a Gaussian of full covariance (a map as in `linear-flow`): numbers that
depend on each other, as pixels do, need one.

Images are rows of numbers. Raises GencliError for whole numbers, and for a target of other data than points in the plane.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gencli.config import opt
from gencli.models.flow._layers import ClassSettings, LayeredFlow
from gencli.nn.bijection import Bijection, Inverse
from gencli.nn.linear_maps import LU
from gencli.nn.planar import Planar as Ridge


class Planar(LayeredFlow):
    """Ridges in turn."""

    bijection: type[Bijection] = Ridge

    @dataclass(frozen=True)
    class Config(ClassSettings):
        layers: int = opt(32, "maps in turn", low=1)
        linear: bool = opt(False, "a full linear map at the data's end: of noise of any covariance instead of N(0, I)")

    def layers(self, dim: int, context: int) -> Iterable[Bijection]:
        if self.config.linear:
            yield LU(dim)
        for _ in range(self.config.layers):
            one = self.bijection(dim, context)
            yield Inverse(one) if self.energy else one
