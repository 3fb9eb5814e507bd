"""Adversarial Autoencoders (Makhzani, Shlens, Jaitly, Goodfellow & Frey, 2015). arXiv:1511.05644

Offers: sample, encode, reconstruct

    reconstruction  E, G    Σ (x − G(E(x)))²
    discriminator   D       −log D(z) − log(1 − D(E(x))),   z ~ p(z)
    encoder         E       −log D(E(x))

Three turns a step, in this order, each with an optimiser of its own: only the first moves the decoder, and it knows nothing
of the discriminator. All codes together come to have the distribution p(z), any that can be drawn from:

    normal      N(0, σ² I) of any dimension
    mixture     of Gaussians in the plane, one a class (10 without labels), each along a ray from the centre
    swiss-roll  in the plane, from the centre outwards

`labels` tells the discriminator the class, beside the code: the codes of class k then match component k of the mixture, or the
k-th part of the roll, and samples of a class can be asked for; the autoencoder itself sees no labels. `classes` is the paper's
supervised autoencoder: the decoder is told the class one-hot beside the code, which need not say it and comes to hold the
style; the code alone then is no image, so that such a model is no codec. The discriminator's `accuracy` is logged: near one
half, prior and codes look alike to it.

Paper: two layers of 1,000 relu units in all three networks, SGD. Ours: Adam; the shape of the mixture (means at radius 1.4,
deviation 0.5 along the ray and 0.1 across) and of the roll (two turns to radius 3, deviation 0.1), of which the paper has
only pictures; all items have labels or none has.

Data `(N, *shape)`, continuous; latents `(N, dim)`.
Raises GencliError for discrete codes, a mixture or roll of another dimension than 2, labels or classes of data that have
none, labels with a normal prior, and both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.config import opt
from gencli.core import Batch, Field, Losses, Phase, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models._conditions import label_of
from gencli.models.vae._matched import Matched

COMPONENTS = 10
RADIUS, ALONG, ACROSS = 1.4, 0.5, 0.1  # of the mixture
OUTMOST, TURNS, THICKNESS = 3.0, 2, 0.1  # of the roll


class AAE(Matched):
    """An autoencoder whose codes a discriminator cannot tell from draws of a prior."""

    improves: ClassVar[str] = "reconstruction/loss"

    @dataclass(frozen=True)
    class Config(Matched.Config):
        prior: Literal["normal", "mixture", "swiss-roll"] = opt("normal", "distribution of the codes")
        labels: bool = opt(False, "tell the discriminator the class, so that each class has its part of the prior")
        classes: bool = opt(False, "tell the decoder the class, so that the code keeps the style")
        adversarial_lr: float = opt(0.0, "learning rate of discriminator and encoder's turns; 0 = the run's", low=0)

    def __init__(self, config: Config, spec: Spec) -> None:
        if config.labels and config.classes:
            raise GencliError(
                "labels and classes are both true: a code that need not say the class is asked to", "leave one out"
            )
        asked = next((name for name in ("labels", "classes") if getattr(config, name)), None)
        super().__init__(config, spec, label_of(spec, "aae", asked) if asked else {}, config.classes)
        if config.prior != "normal" and config.dim != 2:
            raise GencliError(f"a {config.prior} prior is in the plane, dim is {config.dim}", "use --dim 2")
        if config.prior == "normal" and config.labels:
            raise GencliError(
                "labels choose a part of the prior, normal has none", "use --prior mixture, or swiss-roll"
            )
        self.parts = (self.spec.cond["label"].vocab or COMPONENTS) if config.labels else COMPONENTS
        seen = Field("latent", (config.dim + (self.parts if config.labels else 0),))
        self.discriminator = config.discriminator.build(seen, Field("score", (1,)), {})
        self.couples = self.normed()

    def phases(self) -> list[Phase]:
        rate = {"lr": self.config.adversarial_lr} if self.config.adversarial_lr else {}
        return [
            Phase("reconstruction", (self.encoder, self.decoder)),
            Phase("discriminator", (self.discriminator,), optim=rate),
            Phase("encoder", (self.encoder,), optim=rate),
        ]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x, cond = batch["x"], {key: batch[key] for key in self.spec.cond}
        if turn.phase == "reconstruction":
            each = self.apart(x, self.code(x, turn.rng), **cond)
        elif turn.phase == "encoder":
            each = self.mistaken(self.judged(self.code(x, turn.rng), cond))
        else:
            with torch.no_grad():
                z = self.code(x, turn.rng)
            drawn = self._wide(self.prior(len(x), turn.rng.at("prior"), **cond))
            return self.told_apart(self.judged(drawn, cond), self.judged(z, cond))
        return {"loss": each.mean(), "each": each}

    def judged(self, z: Tensor, cond: Batch) -> Tensor:
        """The discriminator's score `(N,)` of a code and, if it is told, its class."""
        return self.score(torch.cat([z, F.one_hot(cond["label"], self.parts).to(z)], 1) if self.config.labels else z)

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """z `(n, dim)`; of the class `label`, where the discriminator was told classes, else of any."""
        if self.config.prior == "normal":
            return super().prior(n, rng)
        given = cond.get("label") if self.config.labels else None
        part = rng.at("part").integers((n,), self.parts) if given is None else given.to(rng.device)
        u, noise = rng.at("place").uniform((n,)), rng.at("noise").normal((n, 2))
        made = petal(part, noise, self.parts) if self.config.prior == "mixture" else roll(part, u, noise, self.parts)
        return made.to(self.device, self._dtype)


def petal(part: Tensor, noise: Tensor, parts: int) -> Tensor:
    """A point `(N, 2)` of the mixture's component `part` `(N,)` from normal numbers `(N, 2)`."""
    angle = 2 * math.pi * part / parts
    along, across = RADIUS + ALONG * noise[:, 0], ACROSS * noise[:, 1]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([along * cos - across * sin, along * sin + across * cos], 1)


def roll(part: Tensor, u: Tensor, noise: Tensor, parts: int) -> Tensor:
    """A point `(N, 2)` of the roll, evenly over its area, in the k-th of `parts` shares of it."""
    far = ((part + u) / parts).sqrt()
    angle = 2 * math.pi * TURNS * far
    return OUTMOST * far[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + THICKNESS * noise
