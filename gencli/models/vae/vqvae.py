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

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Model, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.nn.quantise import Quantiser, perplexity


class VQVAE(Model):
    """Encoder, codebook, decoder."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    training_only = ("quantiser.statistics.",)
    compilable = ("encoder", "decoder")
    shardable = ("encoder", "decoder")
    variance: Tensor

    @dataclass(frozen=True)
    class Config:
        codes: int = opt(512, "size of the codebook K", low=2)
        dim: int = opt(64, "numbers in a code", low=1)
        beta: float = opt(0.25, "weight of the commitment term, which pulls the encoder to its codes", low=0)
        codebook: Literal["ema", "gradient"] = opt("ema", "how the codes learn: moving averages, or the paper's loss")
        decay: float = opt(0.99, "decay of the codebook's moving averages", low=0, high=0.9999)
        restart: float = opt(0.1, "replace codes used less than this share of even use; 0 = never", low=0, high=0.9)
        encoder: Part = part("networks", "conv-encoder", "network from x to the codebook's space", role="map")
        decoder: Part = part("networks", "conv-decoder", "network from the codebook's space to x", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        x = spec.x
        if len(x.shape) != 3 or x.range is None:
            raise GencliError(
                f"vqvae needs images with a range, got {x.kind} of shape {x.shape} without one"
                if x.range is None
                else f"vqvae needs images (channels, height, width), got {x.kind} of shape {x.shape}",
                "use image data and the pixels codec",
            )
        stride = config.encoder.load().factor(config.encoder.config)
        grid = tuple(side // stride for side in x.shape[1:])
        inner = Field("latent", (config.dim, *grid))
        self.encoder = config.encoder.build(x, inner, {})
        self.decoder = config.decoder.build(inner, x, {})
        self.quantiser = Quantiser(config.codes, config.dim, config.codebook, config.decay, config.restart)
        self.latent = Field("codes", grid, vocab=config.codes)
        self.register_buffer("variance", torch.ones(()))

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """The data's variance, and k-means of the encoder's first outputs."""
        config, each = self.config, self.latent.size
        want = max(math.ceil(32 * config.codes / each), min(count, 1024))
        batches: list[Tensor] = []
        while sum(len(x) for x in batches) < want:
            batches.append(next(data)["x"].to(self.device))
        x = torch.cat(batches)[:want]
        self.variance.copy_(x.var(correction=0))
        z = torch.cat([self.encoder(part) for part in x.split(256)])
        self.quantiser.initialise(z.movedim(1, -1).flatten(0, -2), rng, epoch=count * each)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        quantised = self.quantiser(self.encoder(x), turn.rng)
        made = self.decoder(quantised.values)
        with core.full_precision(x.device):
            recon = (made.to(self.variance.dtype) - x).square().flatten(1).mean(1) / self.variance
            each = recon + self.config.beta * quantised.commitment
            if self.config.codebook == "gradient":
                each = each + quantised.codebook
        counts = torch.bincount(quantised.codes.flatten(), minlength=self.config.codes)
        logged = {"perplexity": self.quantiser.usage()[0], "usage": self.quantiser.usage()[1]}
        return {
            "loss": each.mean(),
            "each": each,
            "recon": recon.mean().detach(),
            "commitment": quantised.commitment.mean().detach(),
            "batch_perplexity": perplexity(counts),
            **logged,
        }

    def after_step(self, turn: Turn) -> None:
        self.quantiser.update()

    def encode(self, x: Tensor) -> Tensor:
        """Codes `(N, h, w)`."""
        return self.quantiser.nearest(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """x from codes `(N, h, w)`."""
        return self.decoder(self.quantiser.lookup(z))

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through the codes and back."""
        return self.decode(self.encode(x))
