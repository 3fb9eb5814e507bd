"""Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi, van den Oord & Vinyals, 2019). arXiv:1906.00446

Offers: encode, reconstruct

    L = |x − D(e_top, …, e_bottom)|² / Var(x) + β Σ_l |z_l − sg[e_l]|²,   z_l from the encoder at l and what lies above it

Two or three grids of codes, each half as wide as the next: 256 px become 32×32 and 64×64 codes out of 512. The encoder of
a level reads the features of the level below it. From the top down a level's vectors z_l are a 1×1 projection of its
features, beside what a decoder makes of all codes above; the last decoder reads all codes, the coarser ones up-sampled by
transposed convolutions. Encoders and decoders are those of VQ-VAE (`conv-encoder`, `conv-decoder`), the codebooks follow
moving averages (`gencli/nn/quantise.py`). With two levels, width 128 and residual width 32 they have the 1,388,867
parameters of the common third-party code; the paper's residual width is 64.

Latents are all levels' codes `(N, L)` from the top down, each with numbers of its own: level l has those from l K on. A
prior is trained a level at a time, the levels above being its conditions: `gencli train gated-pixelcnn --codec RUN:top`,
then `--codec RUN:bottom --source top=PRIOR`.

Ours: what VQ-VAE here does differently from its released code holds here too, and the projections start from vectors of
mean 0 and variance 1. A small network per lower level learns the mean of its vectors given the codes above,
|g(sg[context]) − sg[e_l]|², which moves nothing else: where only upper levels are drawn, the codes nearest to that are
filled in, so that a prior of the top alone makes (coarse) pictures. On small images the bottom codes can carry everything
and the top nothing; then a share `coarse` of the items is decoded from the upper levels and what they tell of the lower.

Raises GencliError for data that are not continuous images and for sides that the coarsest level's stride does not divide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from gencli import core
from gencli.config import opt
from gencli.core import Batch, Field, Losses, Model, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.networks.conv_decoder import ConvDecoder
from gencli.networks.conv_encoder import ConvEncoder
from gencli.nn.quantise import Quantised, Quantiser, perplexity
from gencli.nn.sides import check_sides

NAMES: dict[int, tuple[str, ...]] = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}
PIXELS = 1 << 22  # encoded at a time where nothing is trained


class VQVAE2(Model):
    """A hierarchy of codes."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    training_only = tuple(f"quantisers.{name}.statistics." for name in NAMES[3])
    compilable = ("decoder",)
    shardable = ("decoder",)
    variance: Tensor

    @dataclass(frozen=True)
    class Config:
        levels: Literal[2, 3] = opt(2, "grids of codes: top and bottom, or top, middle and bottom")
        codes: int = opt(512, "size of each level's codebook K", low=2)
        dim: int = opt(64, "numbers in a code", low=1)
        beta: float = opt(0.25, "weight of the commitment terms, which pull the encoders to their codes", low=0)
        decay: float = opt(0.99, "decay of the codebooks' moving averages", low=0, high=0.9999)
        restart: float = opt(0.1, "replace codes used less than this share of even use; 0 = never", low=0, high=0.9)
        coarse: float = opt(0.0, "share of items that are made from the upper levels alone in training", low=0, high=1)
        downsamples: int = opt(2, "halvings of the image's side down to the bottom codes", low=1, high=5)
        width: int = opt(128, "feature maps", low=2)
        residual_width: int = opt(64, "feature maps inside a residual block", low=1)
        residual_blocks: int = opt(2, "residual blocks of each encoder and decoder", low=0)

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        x, self.names = spec.x, NAMES[config.levels]
        _check(x, 1 << (config.downsamples + config.levels - 1))
        self.levels = _fields(config, x)
        self.latent = Field("codes", (sum(f.size for f in self.levels.values()),), vocab=config.levels * config.codes)
        self.encoders, self.projections, self.quantisers = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.rises, self.contexts, self.guesses = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self._make_encoders(x)
        for above, name in enumerate(self.names):
            self._make_level(name, above)
        whole = Field("latent", (config.dim * config.levels, *self.levels[self.names[-1]].shape))
        self.decoder = ConvDecoder(self._network(ConvDecoder, config.downsamples), whole, x)
        self.register_buffer("variance", torch.ones(()))

    # ------------------------------------------------------------------------------------------------------------- making

    def _network(self, kind: Any, downsamples: int) -> Any:
        config = self.config
        return kind.Config(config.width, config.residual_width, config.residual_blocks, downsamples)

    def _make_encoders(self, x: Field) -> None:
        """From the image up: each reads the features of the one before."""
        for name in reversed(self.names):
            halvings = self.config.downsamples if name == self.names[-1] else 1
            features = Field("latent", (self.config.width, *self.levels[name].shape))
            self.encoders[name] = ConvEncoder(self._network(ConvEncoder, halvings), x, features).body
            x = features

    def _make_level(self, name: str, above: int) -> None:
        """What a level has of its own; `above` levels are above it."""
        dim, width, grid = self.config.dim, self.config.width, self.levels[name].shape
        self.quantisers[name] = Quantiser(self.config.codes, dim, "ema", self.config.decay, self.config.restart)
        self.projections[name] = nn.Conv2d(width + dim * (above > 0), dim, 1)
        if above:
            coarse = Field("latent", (dim * above, *(side // 2 for side in grid)))
            settings = self._network(ConvDecoder, 1)
            self.contexts[name] = ConvDecoder(settings, coarse, Field("latent", (dim, *grid)))
            self.rises[name] = nn.ConvTranspose2d(dim * above, dim * above, 4, stride=2, padding=1)
            self.guesses[name] = nn.Sequential(nn.Conv2d(dim, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, dim, 1))

    # ------------------------------------------------------------------------------------------------------------ the levels

    def _features(self, x: Tensor) -> Batch:
        """Every level's features `(N, width, h, w)`."""
        made = {}
        for name in reversed(self.names):
            made[name] = x = self.encoders[name](x)
        return made

    def _descend(self, take: Callable[[str, Tensor | None], Tensor]) -> Tensor:
        """All levels' vectors on the bottom's grid `(N, levels dim, h, w)`, from the top down.

        Args:
            take: a level's vectors `(N, dim, h, w)`, given its name and what the levels above say there (None at the top).
        """
        known: Tensor | None = None
        for name in self.names:
            if known is None:
                known = take(name, None)
            else:
                values = take(name, self.contexts[name](known))
                known = torch.cat([self.rises[name](known), values], dim=1)
        assert known is not None
        return known

    def _quantiser(self, name: str) -> Quantiser:
        return cast(Quantiser, self.quantisers[name])

    def _project(self, name: str, features: Batch, context: Tensor | None) -> Tensor:
        here = features[name] if context is None else torch.cat([context, features[name]], dim=1)
        made: Tensor = self.projections[name](here)
        return made

    # -------------------------------------------------------------------------------------------------------------- training

    @torch.no_grad()
    def initialise(self, data: Iterator[Batch], count: int, rng: Rng) -> None:
        """The data's variance, and from the top down vectors of unit variance and k-means of them."""
        each = self.levels["top"].size
        want = max(math.ceil(32 * self.config.codes / each), min(count, 256))
        batches: list[Tensor] = []
        while sum(len(x) for x in batches) < want:
            batches.append(next(data)["x"].to(self.variance))
        x = torch.cat(batches)[:want]
        self.variance.copy_(x.var(correction=0))
        parts = [self._features(part) for part in x.split(_rows(x))]
        features = {name: torch.cat([part[name] for part in parts]) for name in self.names}

        def place(name: str, context: Tensor | None) -> Tensor:
            normalise(cast(nn.Conv2d, self.projections[name]), self._project(name, features, context))
            z, quantiser = self._project(name, features, context), self._quantiser(name)
            vectors = z.movedim(1, -1).flatten(0, -2)
            quantiser.initialise(vectors, rng.at(name), epoch=count * self.levels[name].size)
            return quantiser.lookup(quantiser.nearest(z))

        self._descend(place)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"].to(self.variance)
        features, levels, guessed = self._features(x), {}, []
        kept = self._kept(len(x), turn.rng.at("coarse")).to(x.device)

        def take(name: str, context: Tensor | None) -> Tensor:
            made = self._quantiser(name)(self._project(name, features, context), turn.rng.at(name))
            levels[name] = made
            if context is None:
                return cast(Tensor, made.values)
            guessed.append(_distance(self.guesses[name](context.detach()), made.values.detach()))
            if not self.config.coarse:
                return cast(Tensor, made.values)
            return torch.where(kept > self.names.index(name), made.values, self._guess(name, context))

        made = self.decoder(self._descend(take))
        with core.full_precision(x.device):
            recon = _distance(made, x) / self.variance
            commitment = torch.stack([level.commitment for level in levels.values()]).sum(0)
            guess = torch.stack(guessed).sum(0)
            each = recon + self.config.beta * commitment + guess
        return {
            "loss": each.mean(),
            "each": each,
            "recon": recon.mean().detach(),
            "commitment": commitment.mean().detach(),
            "guess": guess.mean().detach(),
            **self._use(levels),
        }

    def _kept(self, n: int, rng: Rng) -> Tensor:
        """How many levels each item is made from `(N, 1, 1, 1)`: all, or for the share `coarse` fewer, evenly."""
        most, share = len(self.names), self.config.coarse
        u = rng.uniform((n,)).view(-1, 1, 1, 1)
        fewer = 1 + (u / max(share, 1e-9) * (most - 1)).long().clamp(max=most - 2)
        return torch.where(u < share, fewer, most)

    def _guess(self, name: str, context: Tensor) -> Tensor:
        """The vectors of the codes nearest to what the levels above tell, straight through."""
        made, quantiser = self.guesses[name](context), self._quantiser(name)
        return quantiser.lookup(quantiser.nearest(made)) + (made - made.detach())

    def _use(self, levels: Mapping[str, Quantised]) -> Losses:
        """What is logged of the codebooks: perplexities, and the share of codes in use over an epoch."""
        made = {}
        for name, level in levels.items():
            made[f"perplexity_{name}"], made[f"usage_{name}"] = self._quantiser(name).usage()
            counts = torch.bincount(level.codes.flatten(), minlength=self.config.codes)
            made[f"batch_perplexity_{name}"] = perplexity(counts)
        return made

    def after_step(self, turn: Turn) -> None:
        for name in self.names:
            self._quantiser(name).update()

    # ----------------------------------------------------------------------------------------------------------------- codes

    def encode(self, x: Tensor) -> Tensor:
        """All levels' codes `(N, L)`."""
        features, codes = self._features(x), {}

        def take(name: str, context: Tensor | None) -> Tensor:
            codes[name] = self._quantiser(name).nearest(self._project(name, features, context))
            return self._quantiser(name).lookup(codes[name])

        self._descend(take)
        return self.join(codes)

    def decode(self, z: Tensor) -> Tensor:
        """x from all levels' codes `(N, L)`."""
        codes = self.split(z)
        made: Tensor = self.decoder(self._descend(lambda name, context: self._quantiser(name).lookup(codes[name])))
        return made

    def reconstruct(self, x: Tensor) -> Tensor:
        """x through the codes and back."""
        return self.decode(self.encode(x))

    def split(self, z: Tensor) -> Batch:
        """Each level's codes `(N, h, w)` in 0 … K−1."""
        parts = z.split([field.size for field in self.levels.values()], dim=1)
        return {
            name: part.unflatten(1, self.levels[name].shape) % self.config.codes
            for name, part in zip(self.names, parts, strict=True)
        }

    def join(self, levels: Mapping[str, Tensor]) -> Tensor:
        """`(N, L)` from the codes of the upper levels; those left out become the codes nearest to their expected vectors."""
        codes = dict(levels)

        def take(name: str, context: Tensor | None) -> Tensor:
            if name not in codes:
                codes[name] = self._quantiser(name).nearest(self.guesses[name](context))
            return self._quantiser(name).lookup(codes[name])

        if len(codes) < len(self.names):
            self._descend(take)
        return torch.cat([codes[name].flatten(1) + i * self.config.codes for i, name in enumerate(self.names)], dim=1)


def _check(x: Field, stride: int) -> None:
    if x.range is None or len(x.shape) != 3:
        lacks = "images (channels, height, width)" if len(x.shape) != 3 else "images with a range"
        raise GencliError(
            f"vqvae2 needs {lacks}, got {x.kind} of shape {x.shape}{'' if x.range else ' without one'}",
            "use image data and the pixels codec",
        )
    check_sides(*x.shape[1:], stride, "fewer --downsamples")


def _fields(config: Any, x: Field) -> dict[str, Field]:
    """The levels from the top down."""
    made = {}
    for above, name in enumerate(NAMES[config.levels]):
        stride = 1 << (config.downsamples + config.levels - 1 - above)
        made[name] = Field("codes", tuple(side // stride for side in x.shape[1:]), vocab=config.codes)
    return made


def normalise(projection: nn.Conv2d, made: Tensor) -> None:
    """Change a 1×1 convolution so that each channel of what it made `(N, D, h, w)` has mean 0 and variance 1."""
    assert projection.bias is not None
    mean, std = made.mean((0, 2, 3)), made.std((0, 2, 3)).clamp(min=1e-8)
    projection.bias.copy_((projection.bias - mean) / std)
    projection.weight.div_(std.view(-1, 1, 1, 1))


def _distance(made: Tensor, x: Tensor) -> Tensor:
    """Mean squared differences `(N,)`."""
    return (made.to(x.dtype) - x).square().flatten(1).mean(1)


def _rows(x: Tensor) -> int:
    """How many items are encoded at a time."""
    return max(1, PIXELS // x[0, 0].numel())
