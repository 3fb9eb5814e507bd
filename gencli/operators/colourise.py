"""Colourisation: the mean of the three channels is measured.

Offers: linear

    y = (x_red + x_green + x_blue) / 3

Measurements are grey images `(1, H, W)`. Raises GencliError for images that are not in colour.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from gencli.core import Field
from gencli.errors import GencliError
from gencli.operators._base import LinearOperator
from gencli.operators._transforms import with_first


class Colourise(LinearOperator):
    """Grey of colours."""

    def __init__(self, config: Any, x: Field) -> None:
        super().__init__(config, x)
        if self.shape[0] != 3:
            raise GencliError(
                f"colourise needs images of 3 channels, these have {self.shape[0]}", "use a model of colours"
            )
        self.basis = with_first(torch.ones(3, dtype=torch.float64))
        values = torch.zeros(self.shape, dtype=torch.float64)
        values[0] = 1 / math.sqrt(3)
        self.values = values.flatten()

    def rotate(self, x: Tensor) -> Tensor:
        return torch.einsum("dc,nchw->ndhw", self.basis.to(x), x).flatten(1)

    def back(self, c: Tensor) -> Tensor:
        return torch.einsum("dc,ndhw->nchw", self.basis.to(c), c.view(-1, *self.shape))

    def lift(self, c: Tensor) -> Tensor:
        return c.view(-1, *self.shape)[:, :1]

    def lower(self, y: Tensor) -> Tensor:
        return torch.cat([y, torch.zeros_like(y).expand(-1, 2, -1, -1)], 1).flatten(1)

    def seen(self, y: Tensor) -> Tensor:
        return y.expand(-1, 3, -1, -1)
