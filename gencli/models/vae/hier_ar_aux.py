"""Hierarchical Autoregressive Image Models with Auxiliary Decoders (De Fauw, Dieleman & Simonyan, 2019). arXiv:1903.04933

Offers: sample, bound, encode, reconstruct

    log p(x, c) = log p(c) + log p(x | c),   c = c(x) the codes of an encoder that is trained for another decoder

An autoregressive decoder is so strong that codes trained for it keep little of the image. So the codes are trained for an
auxiliary decoder, which is feed-forward and thrown away: encoder, codebook and auxiliary decoder are those of VQ-VAE
(`models/vae/vqvae.py`). Two gated PixelCNNs are trained for the codes and for the image given the codes; they see whole
numbers, so that their losses cannot reach the encoder.

x is `(C, H, W)` whole numbers in 0 … V−1, codes `(N, h, w)` in 0 … K−1. log p(x, c(x)) bounds log p(x) from below. A latent
is a normal number for each code and each sub-pixel `(N, hw + CHW)`: the value of a token is read off its distribution at the
quantile that the number has among normal ones, the codes first. As a codec, the model decodes codes by the auxiliary decoder.

Ours: all parts are trained together, each by its own loss, the autoregressive ones divided by the numbers that an image
has; in the paper one after the other. One level of codes; masked self-prediction, the other auxiliary task of the paper,
is not there.

Raises GencliError for data that are no images of whole numbers, and what VQ-VAE and the networks raise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Model, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive._family import at_quantiles
from gencli.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from gencli.models.vae.vqvae import VQVAE

OF_VQVAE = ("codes", "dim", "beta", "decay", "restart", "encoder", "decoder")


class HierArAux(Model):
    """Codes for a throw-away decoder, and autoregressive models of codes and image."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "tokens"},)
    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"
    training_only = ("auxiliary.quantiser.statistics.",)
    compilable = ()
    shardable = ()
    sequential: ClassVar[bool] = True  # decoding what was drawn is a loop over tokens

    @dataclass(frozen=True)
    class Config:
        codes: int = opt(512, "size of the codebook K", low=2)
        dim: int = opt(64, "numbers in a code", low=1)
        beta: float = opt(0.25, "weight of the commitment term, which pulls the encoder to its codes", low=0)
        decay: float = opt(0.99, "decay of the codebook's moving averages", low=0, high=0.9999)
        restart: float = opt(0.1, "replace codes used less than this share of even use; 0 = never", low=0, high=0.9)
        encoder: Part = part("networks", "conv-encoder", "network from x to the codebook's space", role="map")
        decoder: Part = part("networks", "conv-decoder", "the auxiliary, feed-forward decoder", role="map")
        prior_net: Part = part("networks", "gated-pixelcnn", "causal network over the codes", role="sequence")
        net: Part = part(
            "networks", "gated-pixelcnn", "causal network over the image, given the codes", role="sequence"
        )

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        x = spec.x
        if len(x.shape) != 3 or x.vocab is None or x.range is not None:
            raise GencliError(
                f"hier-ar-aux needs images of whole numbers, got {x.kind} of shape {x.shape}"
                + (f" with values in [{x.range[0]:g}, {x.range[1]:g}]" if x.range else ""),
                "use image data and the tokens codec",
            )
        pictures = Spec(dataclasses.replace(x, range=(-1.0, 1.0)))
        self.auxiliary = VQVAE(VQVAE.Config(**{name: getattr(config, name) for name in OF_VQVAE}), pictures)
        self.latent = self.auxiliary.latent
        known = {**spec.cond, "codes": self.latent}
        self.over_codes = GatedPixelCNN(GatedPixelCNN.Config(0.0, config.prior_net), Spec(self.latent, spec.cond))
        self.over_image = GatedPixelCNN(GatedPixelCNN.Config(0.0, config.net), Spec(x, known))
        self.levels_of_grey = x.vocab

    # -------------------------------------------------------------------------------------------------------------- training

    def _scaled(self, x: Tensor) -> Tensor:
        """Whole numbers to [−1, 1]."""
        return x.to(self.auxiliary.variance) * (2 / max(self.levels_of_grey - 1, 1)) - 1

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """What VQ-VAE does."""
        pictures = ({**batch, "x": self._scaled(batch["x"].to(self.device))} for batch in data)
        self.auxiliary.initialise(pictures, count, rng)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        made = self.auxiliary.loss({"x": self._scaled(x)}, turn)
        codes = self.encode(x)
        nats = [-part for part in self._log_probs(x, codes, batch)]
        each = made["each"] + (nats[0] + nats[1]) / self.spec.x.size
        bits = {name: nat.mean().detach() / math.log(2) for name, nat in zip(("codes", "image"), nats, strict=True)}
        return {
            **made,
            "loss": each.mean(),
            "each": each,
            "bits_of_codes": bits["codes"],
            "bits_per_dim": (bits["codes"] + bits["image"]) / self.spec.x.size,
        }

    def after_step(self, turn: Turn) -> None:
        self.auxiliary.after_step(turn)

    # ------------------------------------------------------------------------------------------------------------ likelihood

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """log p(x, c(x)) in nats `(N,)`; without randomness."""
        codes, image = self._log_probs(x, self.encode(x), cond)
        return codes + image

    @staticmethod
    def estimate(samples: int) -> str:
        """What `log_prob` is called."""
        return "log p(x, codes)"

    def _log_probs(self, x: Tensor, codes: Tensor, cond: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        given = self._known(cond)
        none = Rng.rows(())  # nothing is drawn
        image = self.over_image.log_prob(x, none, 1, **given, codes=codes)
        return self.over_codes.log_prob(codes, none, 1, **given), image

    def _known(self, cond: Mapping[str, Tensor]) -> Batch:
        return {key: value for key, value in cond.items() if key in self.spec.cond}

    # ----------------------------------------------------------------------------------------------------------------- codes

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Codes `(N, h, w)`."""
        return self.auxiliary.encode(self._scaled(x))

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through the codes and the auxiliary decoder."""
        return self.decode(self.encode(x))

    # -------------------------------------------------------------------------------------------------------------- sampling

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """A normal number for each code and each sub-pixel."""
        return rng.normal((n, self.latent.size + self.spec.x.size))

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x of normal numbers `(N, hw + CHW)`, autoregressively; or of codes `(N, h, w)` by the auxiliary decoder."""
        if not z.is_floating_point():
            grey = (self.auxiliary.decode(z) + 1) * ((self.levels_of_grey - 1) / 2)
            return grey.round().clamp(0, self.levels_of_grey - 1).long()
        return self.stages(z, **cond)[-1]

    def stages(self, z: Tensor, **cond: Tensor) -> list[Tensor]:
        """What the auxiliary decoder makes of the codes, then the image."""
        given = self._known(cond)
        parts = z.split([self.latent.size, self.spec.x.size], dim=1)
        codes = at_quantiles(self.over_codes, parts[0], given)
        return [self.decode(codes), at_quantiles(self.over_image, parts[1], {**given, "codes": codes})]
