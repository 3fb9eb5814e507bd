"""Improving Variational Inference with Inverse Autoregressive Flow: as a density (Kingma et al., 2016). arXiv:1606.04934

Offers: sample, exact density

    x_i = (z_i − m_i(z_<i)) exp(−a_i(z_<i)),   log |det dx/dz| = −Σ a_i,   `layers` of them, in opposite orders in turn

which is μ + σ z with σ = exp(−a), μ = −m exp(−a): the layers of `maf` turned round. A sample takes one pass of a network a
layer, the density of data as many as x has numbers. It suits reverse KL (`--target`), which needs the density of own samples
only. The posterior of `nf-vae` has the gated form of the paper.

Raises GencliError as `maf` does.
"""

from __future__ import annotations

from collections.abc import Iterable

from gencli.models.flow._layers import MaskedSettings
from gencli.models.flow.maf import Maf
from gencli.nn.bijection import Bijection, Inverse


class Iaf(Maf):
    """Masked layers from noise to data."""

    Config = MaskedSettings  # type: ignore[assignment]

    def layer(self, dim: int, context: int, reverse: bool) -> Bijection:
        return Inverse(super().layer(dim, context, reverse))

    def norm(self, dim: int) -> Iterable[Bijection]:
        return ()
