"""Improving the PixelCNN with Discretized Logistic Mixture Likelihood (Salimans et al., 2017). arXiv:1701.05517

Offers: sample, exact density

    p(x | h) = Π_i p(x_i | x_<i, h),  every factor a mixture of discretised logistic distributions of a whole pixel

The network (`gencli/networks/pixelcnnpp.py`) gives a pixel's mixture; log p is computed from it directly, while sampling
takes the logits of one channel after the other, which is the same distribution. Filters start from the first batch of data
(weight normalisation). x is `(C, H, W)` pixels or `(h, w)` codes, whole numbers in 0 … V−1; codes have a softmax, and so has
any other network of role `sequence`. Ours: labels may be dropped (`label_dropout`), for guidance.

Raises GencliError for continuous data and for conditions that are neither labels nor vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gencli.config import Part, opt, part
from gencli.core import Batch, Rng
from gencli.models.autoregressive._family import ImageAutoregressiveModel
from gencli.networks.pixelcnnpp import PixelCNNPP as Network


class PixelCNNPP(ImageAutoregressiveModel):
    """Two streams at several resolutions, and a mixture for each pixel."""

    @dataclass(frozen=True)
    class Config:
        label_dropout: float = opt(0.1, "share of items trained without their label", low=0, high=1)
        net: Part = part("networks", "pixelcnnpp", "causal network", role="sequence")

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        if isinstance(self.net, Network):
            batch = next(data)
            self.net.settle(batch["x"], **self.known(batch))
