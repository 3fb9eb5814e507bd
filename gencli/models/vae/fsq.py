"""Finite Scalar Quantization: VQ-VAE Made Simple (Mentzer et al., 2023). arXiv:2309.15505

Offers: encode, reconstruct

    L = |x − D(ẑ)|² / Var(x),   ẑ_i = round(f(z_i)) / ⌊L_i / 2⌋,   ∂ẑ/∂z = f′(z) / ⌊L / 2⌋

f squeezes a number to its L_i levels (`gencli/nn/fsq.py`); nothing else is added to the loss, no codebook is learned. Codes
are `(N, h, w)` in 0 … Π L_i − 1. The paper's sizes: 8,6,5 for 240 codes, 8,5,5,5 for 1,000, 7,5,5,5,5 for 4,375, 8,8,8,6,5
for 15,360.

Ours: the squared distance of `vqvae` alone, where the paper's image models add a perceptual and an adversarial term.

Raises GencliError as of `vqvae`, and for fewer than three levels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Rng, Spec, Turn
from gencli.models.vae._quantised import CountedAutoencoder
from gencli.nn.fsq import FSQ as Rounding


class FSQ(CountedAutoencoder):
    """Encoder, rounding, decoder."""

    variance: Tensor

    @dataclass(frozen=True)
    class Config:
        levels: tuple[int, ...] = opt((8, 5, 5, 5), "levels of each number of a code; their product is the codebook")
        encoder: Part = part("networks", "conv-encoder", "network from x to the numbers of codes", role="map")
        decoder: Part = part("networks", "conv-decoder", "network from the numbers of codes to x", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        rounding = Rounding(config.levels)
        super().__init__(config, spec, rounding.codes, len(config.levels))
        self.rounding = rounding
        self.register_buffer("variance", torch.ones(()))

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """The data's variance."""
        super().initialise(data, count, rng)
        self.variance.copy_(next(data)["x"].var(correction=0))

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        values = self.rounded(x)
        made = self.decoder(values)
        with core.full_precision(x.device):
            each = (made.to(self.variance.dtype) - x).square().flatten(1).mean(1) / self.variance
        return {"loss": each.mean(), "each": each, **self.counted(self.rounding.index(values.detach()))}

    def rounded(self, x: Tensor) -> Tensor:
        """Values on the grid of levels `(N, D, h, w)`."""
        z = self.encoder(x)
        with core.full_precision(x.device):
            return self.rounding(z.to(self.variance.dtype))

    def encode(self, x: Tensor) -> Tensor:
        """Codes `(N, h, w)`."""
        return self.rounding.index(self.rounded(x))

    def decode(self, z: Tensor) -> Tensor:
        """x from codes `(N, h, w)`."""
        return self.decoder(self.rounding.lookup(z).to(self.variance.dtype))
