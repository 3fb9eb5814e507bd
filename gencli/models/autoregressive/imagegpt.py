"""Generative Pretraining From Pixels (Chen et al., 2020).

Offers: sample, exact density

    p(x) = Π_i p(x_i | x_<i) over colours in raster order

GPT-2 with a gain over the root mean square instead of layer norms, x σ(1.702 x), no biases, a learned first vector and an
output table of its own, which starts at zero as in the released code: the first loss is ln V a token. A pixel is one
token, its colour one of 512 of a palette: `gencli train palette`, then `gencli train imagegpt --codec palette`; without a
palette every sub-pixel is a token. Parameters at 32×32 with 512 colours: S 76,571,648 (24 blocks of 512, 8 heads), M
455,157,760 (36 of 1,024, 8 heads), L 1,362,250,752 (48 of 1,536, 16 heads).

The method never looks at labels: they are left out of its spec. What it learned shows in `features`, the average over the
tokens of what a block's attention reads: `gencli eval linear-probe`.

x is `(h, w)` codes or `(C, H, W)` pixels, whole numbers in 0 … V−1.

Raises GencliError for continuous data, and for features of a block that the network lacks.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gencli.config import Part, opt, part
from gencli.errors import GencliError
from gencli.models.autoregressive.gpt import GPT


class ImageGPT(GPT):
    """A transformer over colours, and what it knows of images."""

    conditional = False

    @dataclass(frozen=True)
    class Config:
        layer: int = opt(0, "block whose input is the features; 0 = the middle one", low=0)
        net: Part = part(
            "networks",
            "transformer",
            "causal network",
            role="sequence",
            norm="rms",
            activation="quick-gelu",
            bias=False,
            init="imagegpt",
        )

    def features(self, x: Tensor) -> Tensor:
        """`(N, width)` of x `(N, *x.shape)`."""
        net = self.transformer("give features")
        depth = len(net.blocks)
        layer = self.config.layer or depth // 2
        if layer > depth:
            raise GencliError(
                f"imagegpt: there is no block {layer}, the network has {depth}", f"give --layer {depth // 2}"
            )
        return net.hidden(x, layer).mean(1)
