"""Unsupervised Representation Learning with Deep Convolutional GANs (Radford, Metz & Chintala, 2015). arXiv:1511.06434

Offers: sample

The game of `gan`, non-saturating, between convolutional networks without pooling or hidden fully connected layers: transposed
convolutions with batch normalisation and relus, strided convolutions with batch normalisation and leaky relus of slope 0.2,
weights from N(0, 0.02²), Adam at 2e-4 with β₁ = 0.5.

The defaults are the networks of DCGAN in torch for 64 pixels: 3,576,704 and 2,765,568 parameters for colour images. Ours:
samples are made with running statistics, so that one depends on its own latent alone; and `together`, where the discriminator
is given data and samples in one batch, in the released codes a batch of each. Normalised among themselves, samples lose the
grey level that they have in common before the discriminator could miss it: the ground of digits stayed grey.

Images `(N, C, H, W)` whose sides the networks' strides divide. Errors: as of the family (`gencli/models/gan/_family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Turn
from gencli.models.gan.gan import Gan


class DcGan(Gan):
    """Convolutions all the way."""

    @dataclass(frozen=True)
    class Config(Gan.Config):
        latent: int = opt(100, "numbers in a latent", low=1)
        together: bool = opt(False, "the discriminator sees data and samples in one batch, not in one each")
        generator: Part = part(
            "networks", "dcgan-generator", "network from a latent to x", role="map", width=64, upsamples=4, kernel=4
        )
        critic: Part = part(
            "networks",
            "dcgan-critic",
            "network from x to a score",
            role="map",
            width=64,
            downsamples=4,
            kernel=4,
            norm="batch",
        )

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if turn.phase != "generator" or not self.config.together:
            return super().loss(batch, turn)
        x, cond = self.shown(batch, turn.rng)
        made = self.samples(x, turn.rng, **cond)
        data, samples = self.seen(x, turn.rng.at("seen", "data")), self.seen(made, turn.rng.at("seen", "samples"))
        each = self.by.generator(self.scores(data, samples, **cond)[1])
        return {"loss": each.mean(), "each": each}

    def scores(self, x: Tensor, made: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        if not self.config.together:
            return super().scores(x, made, **cond)
        twice = {key: torch.cat([value, value]) for key, value in cond.items()}
        real, fake = self.score(torch.cat([x, made]), **twice).chunk(2)
        return real, fake
