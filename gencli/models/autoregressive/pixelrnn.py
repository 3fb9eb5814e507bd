"""Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner & Kavukcuoglu, 2016). arXiv:1601.06759

Offers: sample, exact density

    p(x) = Π_i p(x_i | x_<i),  every factor a softmax over the values of a sub-pixel

Raster order, red before green before blue. The paper's two recurrent networks are parts to choose: `diagonal-bilstm` sees
everything before a pixel, `row-lstm` a triangle above it and is faster; its PixelCNN is the model `pixelcnn`. x is
`(C, H, W)` pixels or `(h, w)` codes, whole numbers in 0 … V−1. The method is unconditional: conditions of the data are left
out of its spec and have no effect.

Raises GencliError for continuous data.
"""

from __future__ import annotations

from dataclasses import dataclass

from gencli.config import Part, part
from gencli.models.autoregressive._family import ImageAutoregressiveModel


class PixelRNN(ImageAutoregressiveModel):
    """Masked recurrent layers and a softmax."""

    conditional = False

    @dataclass(frozen=True)
    class Config:
        net: Part = part("networks", "diagonal-bilstm", "causal network", role="sequence")
