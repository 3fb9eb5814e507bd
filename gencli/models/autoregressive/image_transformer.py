"""Image Transformer (Parmar et al., 2018). arXiv:1802.05751

Offers: sample, exact density

    p(x) = Π_i p(x_i | x_j : j < i, j in the memory of i's query block),  every factor a softmax over the values of a sub-pixel

The sequence of sub-pixels is cut into query blocks, and all tokens of a block look at one memory: the block itself and what
surrounds it. `local-1d`: a block of `block` tokens and the `memory` tokens before it, in raster order. `local-2d`: a
rectangle, and the rows above it and columns to its sides; images are then read block by block. Norms come after sums,
the perceptron has relus, places are sines and cosines of column and row (`gencli/networks/transformer.py`).

The released code's CIFAR-10 model has 12 blocks of width 512, 4 heads, query blocks of 256 tokens and as much memory.
Ours: a class, where the data have one, is the first token and always in sight; labels are dropped with the probability
`label_dropout`; the output layer starts small.

x is `(C, H, W)` pixels or `(h, w)` codes, whole numbers in 0 … V−1; a grid's columns are counted in sub-pixels.

Raises GencliError for continuous data and for blocks of the wrong dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

from gencli.config import Part, opt, part
from gencli.models.autoregressive.gpt import GPT


class ImageTransformer(GPT):
    """Local attention, a class, and a softmax."""

    @dataclass(frozen=True)
    class Config:
        label_dropout: float = opt(0.1, "share of items trained without their label", low=0, high=1)
        net: Part = part(
            "networks",
            "transformer",
            "causal network",
            role="sequence",
            mask="local-1d",
            block=[64],
            memory=[64],
            norm_at="after",
            activation="relu",
            positions="sinusoidal-2d",
        )
