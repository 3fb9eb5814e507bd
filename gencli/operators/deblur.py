"""Deblurring: an image convolved with a Gaussian or a square is measured.

Offers: linear

    y = K_h x K_wᵀ,   K_h and K_w the convolutions of columns and of rows

Both kernels sum to 1, and images continue as their mirror image. A Gaussian is cut off at three deviations. With the singular
value decompositions of the small matrices, that of the whole is the product. Measurements have the images' shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Field
from gencli.operators._base import LinearOperator
from gencli.operators._transforms import blur


class Deblur(LinearOperator):
    """A separable convolution."""

    @dataclass(frozen=True)
    class Config:
        kernel: Literal["gaussian", "square"] = opt("gaussian", "its shape")
        width: float = opt(1.0, "deviation of the Gaussian, or half a side of the square less half a pixel", low=0.1)

    def __init__(self, config: Config, x: Field) -> None:
        super().__init__(config, x)
        weights = self.weights()
        self.rows, tall, self.columns = torch.linalg.svd(blur(weights, self.shape[1]))
        self.rows_w, wide, self.columns_w = torch.linalg.svd(blur(weights, self.shape[2]))
        self.values = torch.outer(tall, wide).expand(self.shape).flatten()

    def weights(self) -> Tensor:
        """The kernel `(2 r + 1,)`."""
        width = self.config.width
        reach = max(1, round(3 * width if self.config.kernel == "gaussian" else width))
        at = torch.arange(-reach, reach + 1, dtype=torch.float64)
        made = torch.exp(-0.5 * (at / width) ** 2) if self.config.kernel == "gaussian" else torch.ones_like(at)
        return made / made.sum()

    def rotate(self, x: Tensor) -> Tensor:
        return (self.columns.to(x) @ x @ self.columns_w.mT.to(x)).flatten(1)

    def back(self, c: Tensor) -> Tensor:
        return self.columns.mT.to(c) @ c.view(-1, *self.shape) @ self.columns_w.to(c)

    def lift(self, c: Tensor) -> Tensor:
        return self.rows.to(c) @ c.view(-1, *self.shape) @ self.rows_w.mT.to(c)

    def lower(self, y: Tensor) -> Tensor:
        return (self.rows.mT.to(y) @ y @ self.rows_w.to(y)).flatten(1)

    def seen(self, y: Tensor) -> Tensor:
        return y

    def taken(self, picture: Tensor) -> Tensor:
        return picture
