"""Learning Structured Output Representation using Deep Conditional Generative Models (Sohn, Lee & Yan, 2015).

Offers: sample, bound, encode, reconstruct

    CVAE   = E_q(z|x,c)[−log p(x|z, c)] + KL(q(z|x, c) ‖ p(z|c)),   both Gaussians, the prior's made by a network of c
    GSNN   = E_p(z|c)[−log p(x|z, c)]
    loss   = α CVAE + (1 − α) GSNN,   one draw of z for each

c is what the data say besides x: a class label, images with the sides of x, or both (the paper's x; its y is x here). Training
draws z from q, which has seen x, but using the model draws it from p(z|c): GSNN trains what is used. The label is told to
encoder and decoder as to every VAE with `classes`; images are more channels of the encoder's input, and stand flattened
beside z at the decoder's. The prior's network sees the label one-hot, and images flattened. A constant c gives `vae`.

`completes` makes images their own conditions: of every item one half is known, any of the four, or nothing, evenly by chance;
c is what is known, 0 elsewhere, and the mask, beside what the data say. log p(x|z, c) then counts only what is hidden. A half
that is given when sampling is completed (`gencli sample RUN --input IMAGE --keep top-half`); another mask is taken, but was
never seen in training; without any the model draws, and bounds log p of, whole images.

Paper: images are completed from one, two or three quadrants, a model for each, and segmented; α = 1 is its CVAE, its hybrid's
α is chosen on validation data. Ours: halves, one model for all; flat latents; classes as conditions; no baseline network whose
guess is one more condition.
Logged with α < 1: `gsnn`, besides the CVAE's terms.

Raises GencliError as `vae` does, for data without conditions unless it completes, for conditions of another kind, and for the
completion of what is no image.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.models._conditions import told
from gencli.models.vae._family import GaussianVAE, Settings
from gencli.models.vae._priors import Density, Prior
from gencli.nn.gaussian import DiagonalGaussian

KNOWN = ("known", "keep")  # the keys by which completion says what stays


class CVAE(GaussianVAE):
    """A VAE of x given conditions, whose prior depends on them too."""

    @dataclass(frozen=True)
    class Config(Settings):
        alpha: float = opt(
            1.0, "share of the CVAE's loss; the rest is the GSNN's, of draws from the prior", low=0, high=1
        )
        completes: bool = opt(False, "learn to complete images of which a half is known")
        prior_net: Part = part("networks", "mlp", "network from the conditions to the prior", role="map")

    @classmethod
    def conditions(cls, config: Any, spec: Spec) -> Mapping[str, Field]:
        if not spec.cond and not config.completes:
            raise GencliError(
                "cvae is a model of x given conditions, and the data have none",
                "train vae, use labels, or have it complete halves: --completes",
            )
        if config.completes and len(spec.x.shape) != 3:
            raise GencliError(
                f"completes is true, but {spec.x.kind} of shape {spec.x.shape} have no halves", "use image data"
            )
        for key, field in spec.cond.items():
            image = field.vocab is None or field.range is not None
            if key != "label" and not (image and len(field.shape) == 3 and field.shape[1:] == spec.x.shape[1:]):
                raise GencliError(
                    f"cvae cannot take the condition '{key}' ({field.kind} of shape {field.shape})",
                    f"it takes class labels and images with the sides of x, {spec.x.shape}",
                )
        return spec.cond

    @property
    def completes(self) -> bool:
        """Whether `known` and `keep` may be given too, both `(N, *x.shape)`."""
        completes: bool = self.config.completes
        return completes

    @property
    def fields(self) -> Mapping[str, Field]:
        """Of all that the networks are told."""
        own = {key: Field("image", self.spec.x.shape) for key in KNOWN} if self.completes else {}
        return {**self.spec.cond, **own}

    def given(self, cond: Mapping[str, Tensor]) -> Batch:
        told = super().given(cond)
        if not self.completes:
            return told
        nothing = torch.zeros((1, *self.spec.x.shape), device=self.device)
        keep = cond.get("keep", nothing).to(nothing)
        return {**told, "known": cond["known"].to(nothing) * keep if "known" in cond else nothing, "keep": keep}

    def build_networks(self, latent: Field, posterior: Field) -> None:
        x, shapes = self.spec.x, [field.shape for key, field in self.fields.items() if key != "label"]
        seen = Field(x.kind, (x.shape[0] + sum(shape[0] for shape in shapes), *x.shape[1:]), x.vocab, x.range)
        beside = Field("latent", (latent.size + sum(math.prod(shape) for shape in shapes),))
        self.encoder = told(self.config.encoder, seen, posterior, self.spec.cond)
        self.decoder = told(self.config.decoder, beside, self.observed.out, self.spec.cond)

    def prior_over(self) -> Prior:
        return Conditional(self.config, dataclasses.replace(self.spec, cond=self.fields), self.posterior)

    def encoded(self, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        label, images = split(cond, len(x))
        return super().encoded(torch.cat([x, *(image.to(x) for image in images)], 1), label)

    def decoded(self, z: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        label, images = split(cond, len(z))
        return super().decoded(torch.cat([z, *(image.flatten(1).to(z) for image in images)], 1), label)

    def likely(self, made: Tensor, x: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        if not self.completes:
            return super().likely(made, x, cond)
        each = self.observed.each(made, x)
        return (each * (1 - cond["keep"][:, : each.shape[1]].to(each))).flatten(1).sum(1)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if self.completes:
            batch = {**batch, "known": batch["x"], "keep": halves(batch["x"], turn.rng.at("half"))}
        losses, alpha = super().loss(batch, turn), self.config.alpha
        if alpha == 1:
            return losses
        x, cond = batch["x"], self.given(batch)
        with full_precision(x.device):
            drawn = self.over_latents.draw(len(x), turn.rng.at("gsnn"), **cond)
        made = self.decoded(drawn, cond)
        with full_precision(x.device):
            gsnn = -self.likely(made.to(drawn), x.to(drawn), cond)
        each = alpha * losses["each"] + (1 - alpha) * gsnn
        return {**losses, "loss": each.mean(), "each": each, "gsnn": gsnn.mean().detach()}


class Conditional(Prior):
    """N(μ(c), diag σ²(c))."""

    def __init__(self, config: Any, spec: Spec, posterior: Callable[..., DiagonalGaussian]) -> None:
        super().__init__(config, spec, posterior)
        self.classes = spec.cond["label"].vocab or 0 if "label" in spec.cond else 0
        size = self.classes + sum(field.size for key, field in spec.cond.items() if key != "label")
        self.net = config.prior_net.build(Field("condition", (size,)), Field("prior", (2 * config.dim,)), {})

    def of(self, cond: Mapping[str, Tensor]) -> DiagonalGaussian:
        """p(z|c), at least in float32."""
        dtype = next(self.parameters()).dtype
        label, images = split(cond, max(map(len, cond.values())))
        hot = [F.one_hot(value, self.classes).to(dtype) for value in label.values()]
        made = self.net(torch.cat([*hot, *(image.flatten(1).to(dtype) for image in images)], 1))
        return DiagonalGaussian(*made.to(torch.promote_types(dtype, torch.float32)).chunk(2, 1))

    def density(self, **cond: Tensor) -> Density:
        return self.of(cond).log_prob

    def draw(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        p = self.of(cond)
        return p.draw(rng.normal((n, self.dim)).to(p.mean))

    def kl(self, q: DiagonalGaussian, **cond: Tensor) -> Tensor:
        return q.kl(self.of(cond))


def split(cond: Mapping[str, Tensor], n: int) -> tuple[Batch, list[Tensor]]:
    """The label, if there is one, and the images `(n, …)` in the conditions' order."""
    images = [v.expand(n, *v.shape[1:]) for k, v in cond.items() if k != "label"]
    return {k: v for k, v in cond.items() if k == "label"}, images


def halves(x: Tensor, rng: Rng) -> Tensor:
    """Of each image `(N, C, H, W)` what is known: 1 in its upper, lower, left or right half, or nowhere."""
    height, width = x.shape[2:]
    down, along = torch.arange(height)[:, None].expand(-1, width), torch.arange(width).expand(height, -1)
    half = (down < height // 2, down >= height - height // 2, along < width // 2, along >= width - width // 2)
    masks = torch.stack([*half, torch.zeros_like(half[0])]).to(x)
    return masks[rng.integers((len(x),), len(masks)).to(x.device)][:, None].expand_as(x)
