"""What autoencoders share whose codes, all taken together, are matched to a prior: E_x q(z|x) = p(z).

    z = E(x), or z ~ N(μ(x), σ²(x)),   x̂ = G(z),   reconstruction Σ (x − x̂)²
    discriminator −log D(z) − log(1 − D(E(x))) of z ~ p(z),   encoder −log D(E(x)),   D a sigmoid of the network's score

Sums over an item's numbers, means over items. Unlike a VAE's KL divergence, the match is about the codes of the whole data
set: an item's own q(z|x) may be a point. Outputs of data with a range are squashed into it by a sigmoid.

The discriminator is needed in training only. Raises GencliError for discrete codes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Part, opt, part
from gencli.core import Field, Losses, Model, Rng, Spec, full_precision
from gencli.errors import GencliError
from gencli.models._conditions import given, told
from gencli.nn.gaussian import DiagonalGaussian


class Matched(Model):
    """An encoder, a decoder and a prior; a method says what makes the codes have it."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    training_only: ClassVar[tuple[str, ...]] = ("discriminator.",)
    compilable: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    shardable: ClassVar[tuple[str, ...]] = ("encoder", "decoder")
    discriminator: nn.Module  # of methods that have one

    @dataclass(frozen=True)
    class Config:
        dim: int = opt(8, "numbers in the latent", low=1)
        spread: float = opt(1.0, "standard deviation of a normal prior", low=1e-3)
        posterior: Literal["deterministic", "gaussian"] = opt(
            "deterministic", "what the encoder makes: the code, or the mean and variance that it is drawn from"
        )
        encoder: Part = part("networks", "mlp", "network from x to the code", role="map")
        decoder: Part = part("networks", "mlp", "network from the code to x", role="map")
        discriminator: Part = part(
            "networks", "mlp", "network from a code to a score", role="map", width=1000, layers=2, activation="relu"
        )

    def __init__(self, config: Any, spec: Spec, cond: Mapping[str, Field] | None = None, classes: bool = False) -> None:
        """`cond` of the data is used; with `classes` by the decoder, so that codes alone are no images."""
        super().__init__(config, dataclasses.replace(spec, cond=cond or {}))
        x, made = spec.x, 2 if config.posterior == "gaussian" else 1
        if x.vocab is not None and x.range is None:
            raise GencliError(
                f"{self.public_name()} needs continuous data, got {x.kind} of {x.vocab} values",
                "use images or points, or train gated-pixelcnn on these codes",
            )
        latent = Field("latent", (config.dim,))
        if not classes:
            self.latent = latent
        self.classes = classes
        self.encoder = config.encoder.build(x, Field("posterior", (made * config.dim,)), {})
        self.decoder = told(config.decoder, latent, x, self.spec.cond if classes else {})

    def normed(self) -> bool:
        """Whether the networks have batch normalisation, which couples the items of a batch."""
        return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def _wide(self, made: Tensor) -> Tensor:
        return made.to(torch.promote_types(self._dtype, torch.float32))

    # ------------------------------------------------------------------------------------------------------------- training

    def code(self, x: Tensor, rng: Rng) -> Tensor:
        """z `(N, dim)` of data, with the noise of a gaussian posterior."""
        made = self._wide(self.encoder(x.to(self._dtype)))
        if self.config.posterior == "deterministic":
            return made
        with full_precision(x.device):
            q = DiagonalGaussian(*made.chunk(2, 1))
            return q.draw(rng.at("posterior").normal(q.mean.shape).to(q.mean))

    def apart(self, x: Tensor, z: Tensor, **cond: Tensor) -> Tensor:
        """Σ (x − G(z))² `(N,)`."""
        made = self._wide(self.decode(z, **cond))
        with full_precision(x.device):
            return (made - self._wide(x)).square().flatten(1).sum(1)

    def told_apart(self, real: Tensor, made: Tensor) -> Losses:
        """The discriminator's loss, from its scores `(N,)` of the prior's draws and of codes."""
        with full_precision(real.device):
            each = F.softplus(-real) + F.softplus(made)
            right = ((real > 0).to(each) + (made < 0).to(each)) / 2
        return {"loss": each.mean(), "each": each, "accuracy": right.mean().detach()}

    def score(self, z: Tensor) -> Tensor:
        """What the discriminator says `(N,)`: log D / (1 − D)."""
        return self._wide(self.discriminator(z.to(self._dtype)).flatten())

    def mistaken(self, made: Tensor) -> Tensor:
        """−log D of codes `(N,)`, from their scores: what the encoder lowers."""
        with full_precision(made.device):
            return F.softplus(-made)

    # ------------------------------------------------------------------------------------------------------------- latents

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """z `(n, dim)`."""
        return self.config.spread * rng.normal((n, self.config.dim)).to(self.device, self._dtype)

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """G(z), inside the data's range."""
        made = self.decoder(z.to(self._dtype), **(given(self, cond) if self.classes else {}))
        if self.spec.x.range is None:
            return made
        low, high = self.spec.x.range
        return low + (high - low) * made.sigmoid()

    def encode(self, x: Tensor, **cond: Tensor) -> Tensor:
        """The code `(N, dim)`, or the mean of q(z|x)."""
        return self._wide(self.encoder(x.to(self._dtype)))[:, : self.config.dim]

    def reconstruct(self, x: Tensor, **cond: Tensor) -> Tensor:
        """x through its code and back."""
        return self.decode(self.encode(x), **cond)
