"""Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2016). arXiv:1611.07004

Offers: sample

    G minimises  a E −log D(c, G(c, z)) + λ E |y − G(c, z)|,   D minimises  ½ E [−log D(c, y) − log(1 − D(c, G(c, z)))]

from an image c, the condition `image`, to an image y of the same sides. D scores overlapping patches of the pair; its losses
are means over patches, the absolute difference a mean over an item's numbers. z is dropout in the generator, in sampling
too: here a latent of zeros and ones (less one, so that its mean is 0 and a temperature of 0 drops nothing).

λ 100, a 1, dropout of one half, halved losses of D and the default networks, for 256×256, are the paper's and the released
code's: 54,413,955 and 2,768,705 parameters for colours. Without `told` D sees y alone, the paper's ablation; with
`adversarial` 0 the generator learns from λ alone, and D not at all. Logged: `l1` and `adversarial` without their weights,
and `real` and `fake`, the shares of patches that D takes for what they are.

Data are pairs: a folder of them (`gencli/data/pairs.py`), or the edges of another data set and what they are of
(`gencli/data/edges.py`). Ours: normalisation of each item by itself, which is the paper's for batches of one, so that an image
is the same whatever its batch; all items of a batch have dropout of their own, drawn from the turn.

Raises GencliError for data without pairs, for images of unlike sides, and for an image to paint from that is not given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Model, Phase, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.gan._objectives import OBJECTIVES

KEPT = 0.5  # share of numbers that dropout leaves
PAIRED = ("pairs", "edges")
UNPAIRED = ("toy2d", "energy")


class Pix2Pix(Model):
    """A generator of images from images, and a discriminator of patches of pairs."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    training_only = ("discriminator.",)
    improves: ClassVar[str] = "discriminator/loss"
    compilable = ("generator",)
    shardable = ()

    @dataclass(frozen=True)
    class Config:
        l1: float = opt(100.0, "weight λ of the absolute difference", low=0)
        adversarial: float = opt(1.0, "weight of the adversarial term; 0 = the difference alone", low=0)
        objective: Literal["non-saturating", "least-squares"] = opt("non-saturating", "the adversarial losses")
        told: bool = opt(True, "the discriminator sees what is painted from, too")
        generator: Part = part("networks", "pix2pix-generator", "network from image to image", role="map")
        discriminator: Part = part(
            "networks", "patch-discriminator", "network from a pair to scores of patches", role="map", norm="instance"
        )

    def __init__(self, config: Config, spec: Spec) -> None:
        given = spec.cond.get("image")
        if given is None:
            raise GencliError(
                "pix2pix paints images from images, and the data are no pairs",
                "give --data a folder of pairs, or a data set of images to make edges of, such as digits",
            )
        x = spec.x
        if x.range is None or given.range is None or len(x.shape) != 3 or given.shape[1:] != x.shape[1:]:
            raise GencliError(
                f"pix2pix needs images of the same sides, got {given.kind} {given.shape} and {x.kind} {x.shape}",
                "use pairs of images and the pixels codec",
            )
        super().__init__(config, Spec(x, {"image": given}))
        pair = Field("image", (x.shape[0] + (given.shape[0] if config.told else 0), *x.shape[1:]))
        self.generator = config.generator.build(given, x, {})
        self.discriminator = config.discriminator.build(pair, Field("score", (1,)), {})
        self.couples = any(isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for m in self.modules())
        self.by = OBJECTIVES[config.objective]

    @classmethod
    def data_for(cls, config: Any, data: Mapping[str, Any]) -> Mapping[str, Any]:
        """A folder holds pairs, and of a set of images the edges are taken."""
        name = data["name"]
        if name == "folder":
            return {**{key: value for key, value in data.items() if key != "unconditional"}, "name": "pairs"}
        if name in PAIRED or name in UNPAIRED:
            return data
        size = {key: data[key] for key in ("image_size",) if key in data}
        return {"name": "edges", "of": name, **size}

    def phases(self) -> list[Phase]:
        generator = Phase("generator", (self.generator,))
        return [Phase("discriminator", (self.discriminator,)), generator] if self.config.adversarial else [generator]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x, given = batch["x"], batch["image"]
        z = self.prior(len(x), turn.rng).to(x)
        if turn.phase == "generator":
            return self.generator_loss(x, given, self.decode(z, image=given))
        with torch.no_grad():
            made = self.decode(z, image=given)
        return self.discriminator_loss(x, given, made)

    def discriminator_loss(self, x: Tensor, given: Tensor, made: Tensor) -> Losses:
        """Half the losses of pairs from the data and of pairs whose second half was painted."""
        real, fake = self.patches(x, given), self.patches(made, given)
        each = (self.by.data(real) + self.by.samples(fake)).mean(1) / 2
        told = {"real": real > self.by.middle, "fake": fake < self.by.middle}
        return {"loss": each.mean(), "each": each, **{key: right.to(each).mean() for key, right in told.items()}}

    def generator_loss(self, x: Tensor, given: Tensor, made: Tensor) -> Losses:
        """How far from the pair's second half, and how real the discriminator finds it."""
        apart = (x - made).abs().flatten(1).mean(1)
        each, logged = self.config.l1 * apart, {"l1": apart.mean().detach()}
        if self.config.adversarial:
            doubt = self.by.generator(self.patches(made, given)).mean(1)
            each = each + self.config.adversarial * doubt
            logged["adversarial"] = doubt.mean().detach()
        return {"loss": each.mean(), "each": each, **logged}

    def patches(self, x: Tensor, given: Tensor) -> Tensor:
        """The discriminator's scores of each patch `(N, patches)`."""
        shown = torch.cat([given, x], 1) if self.config.told else x
        return self.discriminator(shown).flatten(1).to(x.dtype)

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """Factors of dropout less one `(n, numbers)`, of mean 0."""
        kept = rng.at("dropout").uniform((n, self.generator.numbers)) < KEPT
        return kept / KEPT - 1

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x from what is kept, and from the image."""
        if "image" not in cond:
            raise GencliError("pix2pix paints from an image, and none is given", "add --input IMAGE")
        given = cond["image"]
        made = self.generator(given, 1 + z.to(given)).to(given.dtype)
        low, high = self.spec.x.range or (-1.0, 1.0)
        return (low + high) / 2 + (high - low) / 2 * made.tanh()
