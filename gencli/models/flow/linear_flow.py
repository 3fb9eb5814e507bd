"""Glow: the linear flow, of which its invertible 1×1 convolution is one (Kingma & Dhariwal, 2018). arXiv:1807.03039

Offers: sample, exact density

    z = W x + b,   log |det| = Σ s_i

    lu            W = P L (U + diag exp(s)) with a fixed permutation P (Glow, section 3.2)
    qr            W = Q R, Q of D Householder reflections, the diagonal of R being exp(s)
    permutation   W = P diag exp(s): independent numbers

A Gaussian N(−W⁻¹b, (WᵀW)⁻¹): the model to beat. Fitted by maximum likelihood it has the mean and the covariance of the data,
by reverse KL (`--target energy-two`) it keeps to one mode of them. `pixels` is the same W at every pixel, over the channels
of the image after `squeezes` foldings of 2×2 pixels into channels: a 1×1 convolution. x is any row of numbers.

Raises GencliError for `pixels` of data that are no images, or whose sides cannot be folded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gencli.config import opt
from gencli.core import Spec
from gencli.errors import GencliError
from gencli.models.flow._layers import LayeredFlow, Settings
from gencli.nn.bijection import Bijection, Chain, Permutation
from gencli.nn.linear_maps import LU, QR, PerPixel, Scaling
from gencli.nn.sides import check_sides
from gencli.nn.squeeze import squeeze


class LinearFlow(LayeredFlow):
    """One linear map."""

    @dataclass(frozen=True)
    class Config(Settings):
        form: Literal["lu", "qr", "permutation"] = opt("lu", "how W is parameterised")
        pixels: bool = opt(False, "the same W at every pixel: a 1×1 convolution")
        squeezes: int = opt(1, "foldings of 2×2 pixels into channels before a 1×1 convolution", low=0, high=5)

    def __init__(self, config: Any, spec: Spec) -> None:
        if config.pixels:
            if len(spec.x.shape) != 3:
                raise GencliError(f"pixels: {spec.x.kind} of shape {spec.x.shape} have none", "leave --pixels out")
            check_sides(*spec.x.shape[1:], 1 << config.squeezes, "fewer --squeezes")
        super().__init__(config, spec)

    def layers(self, dim: int, context: int) -> Iterable[Bijection]:
        if not self.config.pixels:
            yield from self.maps(dim)
            return
        places = torch.arange(dim).view(1, *self.spec.x.shape)
        for _ in range(self.config.squeezes):
            places = squeeze(places, "rows")
        yield Permutation(places.flatten())
        yield PerPixel(Chain(self.maps(places.shape[1])), places.shape[1])
        yield Permutation(places.flatten().argsort())

    def maps(self, dim: int) -> Iterable[Bijection]:
        """The map of `dim` numbers."""
        if self.config.form == "permutation":
            return [Scaling(dim), Permutation(nn.init.uniform_(torch.empty(dim)).argsort())]
        return [LU(dim) if self.config.form == "lu" else QR(dim)]
