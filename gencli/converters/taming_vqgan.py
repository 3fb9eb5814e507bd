"""Taming Transformers for High-Resolution Image Synthesis: autoencoders (Esser et al., 2020). arXiv:2012.09841

The `.ckpt` files of CompVis/taming-transformers as a `vqgan`, and back: faces, ImageNet with 1,024 or 16,384 codes, and own
ones. The file says no side: 256, or `--image-size`. Left out: the discriminator and the perceptual network (`loss.`).

Errors: a codebook that is drawn from by Gumbel noise (`quantize.embed.`), as surplus; an autoencoder without a codebook.
"""

from __future__ import annotations

from pathlib import Path

from gencli.bundle import Run
from gencli.converters._autoencoder import CompVis
from gencli.converters._official import Found, Given
from gencli.models.vae.vqgan import VQGAN


class TamingVqgan(CompVis):
    """VQGAN."""

    def recognise(self, given: Given, where: Path) -> Found:
        self.need(given, "quantize.embedding.weight", where)
        return super().recognise(given, where)

    def fits(self, run: Run) -> bool:
        return super().fits(run) and isinstance(run.model, VQGAN)
