"""What every operator is: y = A x of images `(N, C, H, W)`; linear ones know their singular value decomposition.

    A = U Σ Vᵀ,   Vᵀ x = `rotate`, V c = `back`, U c = `lift`, Uᵀ y = `lower`

The decompositions are fast: coefficients `(N, D)` of an orthonormal transform of all D numbers of an image, whose singular
values are zero where nothing is measured. Everything that a solver needs follows: A, Aᵀ, A⁺, and the minimum of a quadratic.
Data are in the model's space, −1 … 1.

Raises GencliError for data that are no images, and for images that an operator cannot measure.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from gencli.config import Component
from gencli.core import Field
from gencli.errors import GencliError

NOTHING = 1e-6
"""Singular values below this share of the greatest are none."""


class Operator(Component):
    """Built for images of one shape."""

    def __init__(self, config: Any, x: Field) -> None:
        if x.kind != "image" or len(x.shape) != 3:
            raise GencliError(
                f"operator {self.public_name()} measures images, the model's space is {x.kind} of shape {tuple(x.shape)}",
                "restore with a model of pixels",
            )
        self.config, self.shape = config, tuple(x.shape)

    @abstractmethod
    def measure(self, x: Tensor) -> Tensor:
        """A x `(N, …)`."""

    @abstractmethod
    def seen(self, y: Tensor) -> Tensor:
        """A picture `(N, C, H, W)` of measurements, for people."""

    def taken(self, picture: Tensor) -> Tensor:
        """The measurement that a picture `(N, C, H, W)` of one holds: what is hidden or averaged in it says nothing."""
        return self.measure(picture)


class LinearOperator(Operator):
    """With its singular value decomposition."""

    values: Tensor  # (D,) float64, zero where nothing is measured

    @abstractmethod
    def rotate(self, x: Tensor) -> Tensor:
        """Vᵀ x `(N, D)`."""

    @abstractmethod
    def back(self, c: Tensor) -> Tensor:
        """V c `(N, C, H, W)`."""

    @abstractmethod
    def lift(self, c: Tensor) -> Tensor:
        """U c: the measurement of coefficients `(N, D)`; those without a singular value have no part in it."""

    @abstractmethod
    def lower(self, y: Tensor) -> Tensor:
        """Uᵀ y `(N, D)`, zero without a singular value."""

    def singular(self, like: Tensor) -> Tensor:
        """The singular values `(D,)` on a tensor's device and in its type."""
        kept = torch.where(self.values > NOTHING * self.values.max(), self.values, 0.0)
        return kept.to(like)

    def inverse(self, like: Tensor) -> Tensor:
        """1 / s, and 0 where there is no s."""
        s = self.singular(like)
        return torch.where(s > 0, 1 / s.clamp(min=torch.finfo(s.dtype).tiny), 0.0)

    def measure(self, x: Tensor) -> Tensor:
        return self.lift(self.singular(x) * self.rotate(x))

    def adjoint(self, y: Tensor) -> Tensor:
        """Aᵀ y."""
        return self.back(self.singular(y) * self.lower(y))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A⁺ y."""
        return self.back(self.inverse(y) * self.lower(y))

    def nearest(self, y: Tensor, z: Tensor, weight: float) -> Tensor:
        """argmin over x of |y − A x|² + weight |x − z|², the proximal step of a measurement."""
        s = self.singular(z)
        return self.back((s * self.lower(y) + weight * self.rotate(z)) / (s**2 + weight))

    def seen(self, y: Tensor) -> Tensor:
        return self.pseudo_inverse(y)
