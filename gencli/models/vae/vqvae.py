"""Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017). arXiv:1711.00937

Offers: encode, reconstruct

    L = |x − D(z_q)|² / Var(x) + β |z_e − sg[e]|²  (+ |sg[z_e] − e|² with the `gradient` codebook),
    z_q = e_k,  k = argmin |z_e − e_k|,  ∂L_rec/∂z_e = ∂L_rec/∂z_q

Means over an item's numbers, mean over items, as in the released code; β weighs the encoder's term only. The codebook
follows moving averages by default (`gencli/nn/quantise.py`), starts from k-means of the first encoder outputs, and
restarts dead codes; these two, and pixels in [−1, 1] where the released code has [−½, ½], are ours.

Codes are `(N, h, w)` in 0 … K−1 with h, w the image's sides over the encoder's stride. A prior over them is any model of
whole numbers: `gencli train gated-pixelcnn --codec vqvae`.

Raises GencliError for data that are not continuous images, for sides that the stride does not divide, and for an encoder
and decoder of different strides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gencli import core
from gencli.core import Batch, Losses, Rng, Spec, Turn
from gencli.models.vae._quantised import CodebookAutoencoder


class VQVAE(CodebookAutoencoder):
    """Encoder, codebook, decoder."""

    variance: Tensor

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        self.register_buffer("variance", torch.ones(()))

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """The data's variance, and k-means of the encoder's first outputs."""
        x = self.first(data, count)
        self.variance.copy_(x.var(correction=0))
        self.place(x, count, rng)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        quantised = self.quantiser(self.encoder(x), turn.rng)
        made = self.decoder(quantised.values)
        with core.full_precision(x.device):
            recon = (made.to(self.variance.dtype) - x).square().flatten(1).mean(1) / self.variance
            each = self.pulled(recon, quantised)
        return {
            "loss": each.mean(),
            "each": each,
            "recon": recon.mean().detach(),
            "commitment": quantised.commitment.mean().detach(),
            **self.use_of(quantised.codes, self.quantiser.usage()),
        }
