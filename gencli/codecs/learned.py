"""A trained autoencoder as a codec: its run's own codecs, then its encoder.

Offers: codec

x becomes the latents of the run's model, `(N, *model.latent.shape)` (codes of a VQ-VAE, moments of a VAE); conditions are
kept. Encoding and decoding run without gradients, in micro-batches, on the model's device; the codec is no module, so its
model is in nobody's state dict: a run nests the other run's folder instead.

Raises GencliError if the run's model is no autoencoder, and if the data are not of the shape that it was trained on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.bundle import Run
from gencli.codecs._base import BaseCodec
from gencli.config import opt
from gencli.core import Autoencoder, Batch, Spec
from gencli.errors import GencliError

ROWS = 256  # encoded at a time


class Learned(BaseCodec):
    """`decode(encode(x))` is the run's reconstruction of x."""

    @dataclass(frozen=True)
    class Config:
        run: str = opt("codec", "folder of the run; relative ones are inside the bundle")

    def __init__(self, config: Config, run: Run | None = None) -> None:
        super().__init__(config)
        self.run = run if run is not None else Run.load(config.run)
        model = self.run.model
        if not isinstance(model, Autoencoder):
            raise GencliError(
                f"run '{self.run.name}' cannot be a codec: {type(model).__name__} does not encode and decode",
                "choose the run of an autoencoder such as vqvae",
            )
        self.model = model.eval().requires_grad_(False)

    def spec(self, data: Spec) -> Spec:
        trained = self.run.data_spec.x
        if (data.x.kind, data.x.shape) != (trained.kind, trained.shape):
            raise GencliError(
                f"codec '{self.run.name}' was trained on {trained.kind} {trained.shape}, "
                f"the data are {data.x.kind} {data.x.shape}",
                "use the data, and the image size, that the codec was trained on",
            )
        return dataclasses.replace(data, x=self.model.latent)

    def encode(self, batch: Batch) -> Batch:
        for codec in self.run.codecs:
            batch = codec.encode(batch)
        return {**batch, "x": self._through(self.model.encode, batch["x"])}

    def decode(self, batch: Batch) -> Batch:
        batch = {**batch, "x": self._through(self.model.decode, batch["x"])}
        for codec in reversed(self.run.codecs):
            batch = codec.decode(batch)
        return batch

    @torch.no_grad()
    def _through(self, map: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        device = self.run.model.device
        return torch.cat([map(rows.to(device)).to(x.device) for rows in x.split(ROWS)])
