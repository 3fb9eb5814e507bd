"""Wasserstein Auto-Encoders (Tolstikhin, Bousquet, Gelly & Schölkopf, 2017). arXiv:1711.01558

Offers: sample, encode, reconstruct

    mmd   loss = c E Σ (x − G(E(x)))² + λ MMD²(E(x), z),   z ~ p(z) = N(0, σ² I)
    gan   loss = c E Σ (x − G(E(x)))² − λ E log D(E(x)),   discriminator −log D(z) − log(1 − D(E(x)))

An upper bound of an optimal transport cost between data and samples, with the demand that the codes of all data together have
the prior's distribution relaxed to a penalty. It is on the aggregate: q(z|x) may be a point (`posterior` deterministic) or a
Gaussian. With λ = 0 it is an autoencoder. MMD² is the unbiased estimate over the pairs of a micro-batch, with the sum
of inverse multiquadratics of C = 2 dim σ² times 0.1, 0.2, 0.5, 1, 2, 5 and 10: the batch should be large, and its items are
coupled. Logged: `recon`, with c; `mmd`, which may be negative, or `fooling`, −log D(E(x)).

The kernel, its scales, c 0.05 and λ 10 are the released code's for MNIST, where x is in [0, 1]: of images in [−1, 1] squares
are four times as large, which c 0.0125 undoes. Its discriminator has four layers of 512 relu units.
Left out: its first steps that match moments before training, its noise on x, and log p(z) added to D for CelebA. Ours: the
discriminator's loss without λ, which Adam does not feel.

Data `(N, *shape)`, continuous; latents `(N, dim)`. Raises GencliError for discrete codes and, with mmd, for one item alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Phase, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models.vae._matched import Matched
from gencli.nn.mmd import unbiased_mmd


class WAE(Matched):
    """Reconstruction, and a distance between all codes and the prior."""

    improves: ClassVar[str] = "autoencoder/loss"

    @dataclass(frozen=True)
    class Config(Matched.Config):
        match: Literal["mmd", "gan"] = opt("mmd", "distance of the codes from the prior: kernel, or discriminator")
        strength: float = opt(10.0, "λ, the weight of that distance", low=0)
        cost: float = opt(0.05, "c, the weight of the squared error", low=0)
        discriminator: Part = part(
            "networks", "mlp", "network from a code to a score", role="map", width=512, layers=4, activation="relu"
        )

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        if config.match == "gan":
            self.discriminator = config.discriminator.build(self.latent, Field("score", (1,)), {})
        self.couples = config.match == "mmd" or self.normed()

    def phases(self) -> list[Phase]:
        both = [Phase("autoencoder", (self.encoder, self.decoder))]
        return both if self.config.match == "mmd" else [*both, Phase("discriminator", (self.discriminator,))]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        if turn.phase == "discriminator":
            with torch.no_grad():
                z = self.code(x, turn.rng)
            return self.told_apart(self.score(self._prior_of(x, turn)), self.score(z))
        z = self.code(x, turn.rng)
        recon = self.config.cost * self.apart(x, z)
        shown = {"recon": recon.mean().detach()}
        if self.config.match == "gan":
            fooling = self.mistaken(self.score(z))
            each = recon + self.config.strength * fooling
            return {"loss": each.mean(), "each": each, **shown, "fooling": fooling.mean().detach()}
        mmd = self.mmd(z, self._prior_of(x, turn))
        return {"loss": recon.mean() + self.config.strength * mmd, **shown, "mmd": mmd.detach()}

    def mmd(self, z: Tensor, drawn: Tensor) -> Tensor:
        """MMD² `()` between codes and as many draws from the prior."""
        if len(z) < 2:
            raise GencliError(
                f"the MMD compares pairs of items, a micro-batch has {len(z)}",
                "give a --batch-size of at least 2 for each process and micro-batch, or use --match gan",
            )
        with full_precision(z.device):
            return unbiased_mmd(z, drawn, 2 * self.config.dim * self.config.spread**2)

    def _prior_of(self, x: Tensor, turn: Turn) -> Tensor:
        return self._wide(self.prior(len(x), turn.rng.at("prior")))
