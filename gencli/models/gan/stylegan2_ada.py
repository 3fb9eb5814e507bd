"""Training Generative Adversarial Networks with Limited Data (Karras et al., 2020). arXiv:2006.06676

Offers: sample

StyleGAN2 (arXiv:1912.04958), whose discriminator sees data and samples through augmentations (`nn/bgc.py`), each with a
probability p that follows how sure it is of its data (`models/gan/_pace.py`):

    D: softplus(−D(T x)) + softplus(D(T G(z))),   every 16th turn besides 16 γ/2 E ‖∇ₓ D(T x)‖²   (R1, lazily)
    G: softplus(−D(T G(z))),                      every 4th turn besides 4 · 2 E (‖J_wᵀ y‖ − a)²   (path length)

with y ~ N(0, I) / √(H W) a direction among images, ‖·‖ over a style and then the root mean square over layers, and a the
running mean of that length: a step in w shall move the image as far everywhere. The path length is of half a batch. Classes
are told to both mappings with `--classes`. Logged besides the losses: `p`, and `sure`, r.

Defaults are the released code's for 256 pixels (`paper256`): 512 numbers, 8 layers of mapping, γ 1, target 0.6, p from 0 to 1
in 500,000 images. The released code scales learning rates and betas by k / (k + 1) for a penalty every k turns: recipes have
the rates so, and the generator's β₂ for both. Ours: a is that before the step; fixed p where `pace` is 0; what `_style.py`,
`networks/stylegan2_generator.py` and `nn/bgc.py` say.

Images `(N, C, H, W)` of 1 or 3 channels. Errors: as of the family (`gencli/models/gan/_family.py`) and of the networks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch, Losses, Phase, Rng, Spec, Turn, all_reduce, full_precision
from gencli.models.gan._pace import Pace
from gencli.models.gan._style import Styled

SHRINK = 2  # the path length is of one half of a batch


class Stylegan2Ada(Styled):
    """Modulated convolutions, path lengths, and augmentation as needed."""

    training_only: ClassVar[tuple[str, ...]] = ("critic.", "pace.", "path_mean")
    path_mean: Tensor

    @dataclass(frozen=True)
    class Config(Styled.Config):
        smooth_weight: float = opt(1.0, "γ of that penalty", low=0)
        smooth_every: int = opt(16, "turns of the critic for each of that penalty, then as many times as heavy", low=1)
        path_weight: float = opt(2.0, "weight of the path length; 0 = none", low=0)
        path_every: int = opt(
            4, "turns of the generator for each of the path length, then as many times as heavy", low=1
        )
        path_memory: float = opt(0.01, "share of a step in the running mean of lengths", low=0, high=1)
        augment: Literal["none", "diffaug", "bgc"] = opt("bgc", "what the critic sees of images is changed")
        augment_p: float = opt(0.0, "probability of each change, at the start", low=0, high=1)
        pace: int = opt(500_000, "images in which that probability may go from 0 to 1; 0 = it stays", low=0)
        target: float = opt(
            0.6, "share of sure data, less that of unsure, above which the probability rises", low=-1, high=1
        )

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        self.pace = Pace(config.augment_p)
        self.register_buffer("path_mean", torch.zeros(()))
        self._lengths: Tensor | None = None

    def phases(self) -> list[Phase]:
        every = self.config.critic_turns * self.config.path_every
        path = Phase("path", (self.generator,), every=every, shares="generator")
        return [*super().phases(), *([path] if self.config.path_weight else [])]

    @property
    def augment_p(self) -> Tensor:
        return self.pace.p

    @property
    def adapts(self) -> bool:
        """Whether p follows the discriminator."""
        return self.config.augment != "none" and self.config.pace > 0

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if turn.phase == "path":
            cond = {key: batch[key] for key in self.spec.cond}
            return self.path_loss(batch["x"], turn.rng, **cond)
        losses = super().loss(batch, turn)
        if turn.phase != "critic":
            return losses
        if self.training:
            self.pace.see(losses["real"], len(batch["x"]))
        return {**losses, "sure": 2 * losses["real"] - 1, "p": self.pace.p.clone()}

    def path_loss(self, x: Tensor, rng: Rng, **cond: Tensor) -> Losses:
        """How far lengths are from their mean so far."""
        half = max(len(x) // SHRINK, 1)
        styles = {key: value[:half] for key, value in self.mixed(x, rng, **cond).items()}
        lengths = self.lengths(styles, rng.at("direction").normal(x.shape).to(x)[:half])
        if self.training:
            seen = torch.stack([lengths.detach().sum(), lengths.new_tensor(float(half))])
            self._lengths = seen if self._lengths is None else self._lengths + seen
        loss = (lengths - self.path_mean).square().mean()
        logged = {"length": lengths.mean().detach(), "unevenness": loss.detach()}
        return {"loss": self.config.path_every * self.config.path_weight * loss, **logged}

    def lengths(self, styles: dict[str, Tensor], direction: Tensor) -> Tensor:
        """‖J_wᵀ y‖ of each item `(N,)`, in full precision; it can be differentiated."""
        twice = torch.is_grad_enabled()
        y = direction / math.sqrt(direction.shape[-1] * direction.shape[-2])
        with full_precision(y.device), torch.enable_grad():
            w = styles["w"] if styles["w"].requires_grad else styles["w"].requires_grad_()
            made = self.drawn(w, styles["noise"])
            (gradient,) = torch.autograd.grad((made * y).sum(), w, create_graph=twice)
        still = 0 * made.flatten(1)[:, 0] if twice else 0  # so that the last bias has a gradient, of 0
        return torch.linalg.vector_norm(gradient.flatten(1), dim=1) / math.sqrt(w.shape[1]) + still

    def after_step(self, turn: Turn) -> None:
        super().after_step(turn)
        if turn.phase == "critic" and self.adapts:
            self.pace.settle(self.config.target, self.config.pace)
        if turn.phase == "path":
            pending, self._lengths = self._lengths, None
            total, items = all_reduce(torch.zeros(2).to(self.path_mean) if pending is None else pending)
            if items:
                self.path_mean.lerp_((total / items).to(self.path_mean), self.config.path_memory)
