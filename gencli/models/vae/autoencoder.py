"""Extracting and Composing Robust Features: plain and denoising autoencoders (Vincent et al., 2008).

Offers: encode, reconstruct

    z = E(x̃),   x' = D(z),   loss = |x' − x|² / d  or  −Σ [x log x' + (1 − x) log(1 − x')] / d

x̃ is x (`none`, a plain autoencoder), x with normal noise of deviation `amount` (`gaussian`), or x of which a share `amount`
of the d numbers, as many in every item, is put out (`masking`, the paper's: to the least value of the data, black, or to 0
where data have no range). The target is always the clean x, and nothing is corrupted outside training.

`cross-entropy` takes a grey level between the range's ends as the probability of a one, as the paper does; x' then is the
range's ends mixed by a sigmoid. `code = "sigmoid"` with affine encoder and decoder is the paper's layer, whose tied weights
are an option there and left out here. Means over an item's numbers, mean over items.

There is no prior, so it makes no samples by itself: a mixture of Gaussians over its codes does, `gencli train em --codec RUN`.

Latents are flat, `(N, dim)`. With affine encoder and decoder and no noise the best reconstruction is that of the first `dim`
principal components.

Raises GencliError for whole numbers, for cross-entropy of data without a range, and for a masked share above 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Model, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError


class PlainAutoencoder(Model):
    """An encoder to a few numbers and a decoder back."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    compilable = ("encoder", "decoder")
    shardable = ("encoder", "decoder")

    @dataclass(frozen=True)
    class Config:
        dim: int = opt(16, "numbers in a code", low=1)
        corruption: Literal["none", "gaussian", "masking"] = opt("none", "noise on what is encoded in training")
        amount: float = opt(0.25, "deviation of gaussian noise, in model space; share of masked numbers", low=0)
        code: Literal["linear", "sigmoid"] = opt("linear", "what is done to the encoder's outputs")
        criterion: Literal["squared", "cross-entropy"] = opt("squared", "distance of a reconstruction")
        encoder: Part = part("networks", "mlp", "network from x to the code", role="map")
        decoder: Part = part("networks", "mlp", "network from the code to x", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, dataclasses.replace(spec, cond={}))
        x = spec.x
        if x.vocab is not None and x.range is None:
            raise GencliError(
                f"autoencoder needs continuous data, got whole numbers ({x.kind} of {x.vocab} values)",
                "use the codec pixels with images",
            )
        if config.criterion == "cross-entropy" and x.range is None:
            raise GencliError(f"cross-entropy needs data with a range, {x.kind} have none", "use --criterion squared")
        if config.corruption == "masking" and config.amount > 1:
            raise GencliError(f"--amount {config.amount:g} is no share of numbers to mask", "give a value from 0 to 1")
        self.low, self.high = x.range or (0.0, 1.0)
        self.latent = Field("latent", (config.dim,), range=(0.0, 1.0) if config.code == "sigmoid" else None)
        self.encoder = config.encoder.build(x, self.latent, {})
        self.decoder = config.decoder.build(self.latent, x, {})

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def corrupted(self, x: Tensor, rng: Rng) -> Tensor:
        """x̃ of x."""
        amount = self.config.amount
        if self.config.corruption == "gaussian":
            return x + amount * rng.at("noise").normal(x.shape).to(x)
        if self.config.corruption == "masking":
            keys = rng.at("mask").uniform(x.shape).to(x.device).flatten(1)
            masked = keys.argsort(1).argsort(1) < round(amount * keys.shape[1])
            black = self.low if self.spec.x.range else 0.0
            return x.masked_fill(masked.view(x.shape), black)
        return x

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        made = self.decoder(self.encode(self.corrupted(x, turn.rng)))
        with full_precision(x.device):
            each = self._distance(made.to(torch.promote_types(made.dtype, torch.float32)), x).flatten(1).mean(1)
        return {"loss": each.mean(), "each": each}

    def _distance(self, made: Tensor, x: Tensor) -> Tensor:
        """Of each number, from the decoder's output."""
        if self.config.criterion == "squared":
            return (made - x).square()
        unit = (x.to(made) - self.low) / (self.high - self.low)
        return F.binary_cross_entropy_with_logits(made, unit, reduction="none")

    def encode(self, x: Tensor) -> Tensor:
        """The code `(N, dim)`."""
        z = self.encoder(x.to(self._dtype))
        return z.sigmoid() if self.config.code == "sigmoid" else z

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x from a code."""
        made = self.decoder(z.to(self._dtype))
        if self.config.criterion == "squared":
            return made
        return self.low + (self.high - self.low) * made.sigmoid()

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through the code and back."""
        return self.decode(self.encode(x))
