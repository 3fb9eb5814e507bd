"""Masked Autoregressive Flow for Density Estimation (Papamakarios, Pavlakou & Murray, 2017). arXiv:1705.07057

Offers: sample, exact density

    u_i = (x_i − μ_i(x_<i)) exp(−α_i(x_<i)),   log |det| = −Σ α_i,   `layers` of them, in opposite orders in turn

μ and α are a masked network's (`nn/masked_mlp.py`), ranks of hidden units in sequence as in the authors' code. A density takes
one pass a layer, a sample one pass a number and layer. With `batch_norm`, as in the paper, each layer is followed by a batch
normalisation with learned scale and shift, whose slope counts. With `classes` a density of each class, which the first hidden
layer is told. x is an image in raster order, or any row of numbers.

Paper: MNIST with 5 or 10 layers of two hidden layers of 1024 relu units, after a logit of 1e-6 + (1 − 2e-6) x; Adam at 1e-4,
100 items a step. Ours: networks begin at zero, so that a layer begins as the identity; running averages in evaluation where
the authors take the statistics of the whole training set; the first number is told the class as all others are.

Raises GencliError for whole numbers, and for hidden layers without units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gencli.config import opt
from gencli.core import Spec
from gencli.errors import GencliError
from gencli.models.flow._layers import LayeredFlow, MaskedSettings
from gencli.nn.affine_autoregressive import AffineAutoregressive
from gencli.nn.bijection import Bijection, Normalisation


class Maf(LayeredFlow):
    """Masked layers in opposite orders."""

    @dataclass(frozen=True)
    class Config(MaskedSettings):
        batch_norm: bool = opt(False, "a batch normalisation after each layer")

    def __init__(self, config: Any, spec: Spec) -> None:
        if min(config.hidden, default=1) < 1:
            raise GencliError(f"hidden layers are {config.hidden}", "give a size of at least 1 for each, such as 64,64")
        super().__init__(config, spec)

    def layers(self, dim: int, context: int) -> Iterable[Bijection]:
        for i in range(self.config.layers):
            yield self.layer(dim, context, reverse=i % 2 == 1)
            yield from self.norm(dim)

    def layer(self, dim: int, context: int, reverse: bool) -> Bijection:
        """A masked layer."""
        return AffineAutoregressive(dim, self.config.hidden, context, reverse, self.config.activation)

    def norm(self, dim: int) -> Iterable[Bijection]:
        """What follows a layer."""
        return [Normalisation(dim)] if self.config.batch_norm else []
