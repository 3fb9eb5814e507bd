"""What autoencoders with discrete latents share: an encoder to a grid, a code at each of its places, a decoder.

    x (N, C, H, W) → encoder → grid → codes (N, h, w) in 0 … K−1 → vectors → decoder → x,   h, w = H, W over the stride

A prior over the codes is any model of whole numbers: `gencli train gated-pixelcnn --codec RUN`.

Raises GencliError for data that are not continuous images, for sides that the stride does not divide, and for an encoder
and decoder of different strides.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Model, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.nn.quantise import Quantised, Quantiser, Usage, perplexity

ROWS = 256  # encoded at a time where nothing is trained, of 64×64 images; fewer of larger ones


class GridAutoencoder(Model):
    """Encoder and decoder about a grid; a method says what is at its places, and gives `latent`."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    compilable: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    shardable: ClassVar[tuple[str, ...]] = ("encoder", "decoder")

    latent: Field

    def __init__(
        self, config: Any, spec: Spec, channels: int, into: int | None = None, out: Field | None = None
    ) -> None:
        """`channels` come from the encoder, `into` (as many by default) go to the decoder, which makes `out` (x by default)."""
        super().__init__(config, spec)
        x, name = spec.x, self.public_name()
        if len(x.shape) != 3 or x.range is None:
            raise GencliError(
                f"{name} needs images with a range, got {x.kind} of shape {x.shape} without one"
                if x.range is None
                else f"{name} needs images (channels, height, width), got {x.kind} of shape {x.shape}",
                "use image data and the pixels codec",
            )
        stride = config.encoder.load().factor(config.encoder.config)
        self.grid = tuple(side // stride for side in x.shape[1:])
        self.encoder = config.encoder.build(x, Field("latent", (channels, *self.grid)), {})
        self.decoder = config.decoder.build(Field("latent", (into or channels, *self.grid)), out or x, {})

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latents `(N, *latent.shape)`."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """x from latents."""

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through the latents and back."""
        return self.decode(self.encode(x))


class CodeAutoencoder(GridAutoencoder):
    """An autoencoder whose latents are a code `(N, h, w)` at each place; a method says what a code is."""

    def __init__(self, config: Any, spec: Spec, codes: int, channels: int, **sizes: Any) -> None:
        super().__init__(config, spec, channels, **sizes)
        self.latent = Field("codes", self.grid, vocab=codes)

    def use_of(self, codes: Tensor, usage: tuple[Tensor, Tensor]) -> Losses:
        """What is logged of the codebook: the batch's perplexity, and perplexity and share of codes used over an epoch."""
        counts = torch.bincount(codes.flatten(), minlength=self.latent.vocab or 0)
        return {"batch_perplexity": perplexity(counts), "perplexity": usage[0], "usage": usage[1]}


class CountedAutoencoder(CodeAutoencoder):
    """An autoencoder whose codes are fixed: their use is counted, nothing else is learned of them."""

    training_only: ClassVar[tuple[str, ...]] = ("used.",)

    def __init__(self, config: Any, spec: Spec, codes: int, channels: int, **sizes: Any) -> None:
        super().__init__(config, spec, codes, channels, **sizes)
        self.used = Usage(codes)

    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """How many codes there are in an epoch."""
        self.used.epoch.fill_(count * self.latent.size)

    def after_step(self, turn: Turn) -> None:
        self.used.update()

    def counted(self, codes: Tensor) -> Losses:
        """Count `codes` while training; what is logged of their use."""
        if self.training:
            self.used.see(codes)
        return self.use_of(codes, self.used.now())


class CodebookAutoencoder(CodeAutoencoder):
    """An autoencoder whose codes are vectors in a learned codebook."""

    training_only: ClassVar[tuple[str, ...]] = ("quantiser.statistics.",)

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

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec, config.codes, config.dim)
        self.quantiser = Quantiser(config.codes, config.dim, config.codebook, config.decay, config.restart)

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """k-means of the encoder's first outputs."""
        self.place(self.first(data, count), count, rng)

    def first(self, data: Iterator[Batch], count: int) -> Tensor:
        """As many items as codes are placed by: 32 vectors a code, and 1,024 items where there are so many."""
        each = self.latent.size
        want = max(math.ceil(32 * self.config.codes / each), min(count, 1024))
        batches: list[Tensor] = []
        while sum(len(x) for x in batches) < want:
            batches.append(next(data)["x"].to(self.device))
        return torch.cat(batches)[:want]

    def place(self, x: Tensor, count: int, rng: Rng) -> None:
        """Codes by k-means of what the encoder makes of `x`."""
        rows = min(max(ROWS * 64 * 64 // x[0, 0].numel(), 1), ROWS)
        z = torch.cat([self.encoder(part) for part in x.split(rows)])
        self.quantiser.initialise(z.movedim(1, -1).flatten(0, -2), rng, epoch=count * self.latent.size)

    def pulled(self, each: Tensor, quantised: Quantised) -> Tensor:
        """`each` `(N,)` plus the terms that bring vectors and codes together."""
        each = each + self.config.beta * quantised.commitment
        return each + quantised.codebook if self.config.codebook == "gradient" else each

    def after_step(self, turn: Turn) -> None:
        self.quantiser.update()

    def encode(self, x: Tensor) -> Tensor:
        """Codes `(N, h, w)`."""
        return self.quantiser.nearest(self.encoder(x))

    def decode(self, z: Tensor) -> Tensor:
        """x from codes `(N, h, w)`."""
        return self.decoder(self.quantiser.lookup(z))
