"""Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016). arXiv:1606.05328

Offers: sample, exact density

    p(x | h) = Π_i p(x_i | x_<i, h),  every factor a softmax over the values of a sub-pixel

The network's two gated stacks (`gencli/networks/gated_pixelcnn.py`) have no blind spot; h is a class label, a vector, a
grid of codes, an image, several of these, or nothing. x is `(C, H, W)` pixels or `(h, w)` codes, whole numbers in 0 … V−1.
Ours: labels are dropped with the probability `label_dropout`, so that one model serves with and without a class, and with
guidance.

Raises GencliError for continuous data and for conditions that are none of these.
"""

from __future__ import annotations

from dataclasses import dataclass

from gencli.config import Part, opt, part
from gencli.models.autoregressive._family import ImageAutoregressiveModel


class GatedPixelCNN(ImageAutoregressiveModel):
    """Gated masked convolutions, a class, and a softmax."""

    @dataclass(frozen=True)
    class Config:
        label_dropout: float = opt(0.1, "share of items trained without their label", low=0, high=1)
        net: Part = part("networks", "gated-pixelcnn", "causal network", role="sequence")
