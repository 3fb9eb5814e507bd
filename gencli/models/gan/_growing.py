"""What growing GANs share: how far they have grown, which depends on how many images they have seen.

    `stay` images at the first side, then `fade` images while the next is faded in, `stay` there, and so on to the data's sides

Both networks grow together (`networks/_growing.py`), and data are shown to the critic as the generator could make them. The
count of images is state and is kept with the weights: a resumed run grows on from there, and a run that is sampled half-way
makes what it can. Layers that do not work yet are not moved.

Ours: optimisers keep what they know when a side is added, where the released codes forget it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Spec, Turn
from gencli.models.gan._family import Adversarial
from gencli.networks._growing import Growth, seen_at


class Growing(Adversarial):
    """A count of images, and what it says."""

    seen_images: Tensor

    @dataclass(frozen=True)
    class Config(Adversarial.Config):
        critic_turns: int = opt(1, "turns of the critic for each of the generator; steps count the critic's", low=1)
        first: int = opt(0, "doublings of the coarsest grid to begin with", low=0)
        stay: int = opt(600_000, "images at each side before the next", low=0)
        fade: int = opt(600_000, "images while a side is faded in", low=1)
        critic: Part = part("networks", "progan-critic", "network from x to a score", role="growing")

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        self.register_buffer("seen_images", torch.zeros((), dtype=torch.long))

    @property
    def growth(self) -> Growth:
        """How far the networks have grown."""
        last = len(self.generator.grids) - 1
        grown, images = divmod(int(self.seen_images), self.config.stay + self.config.fade)
        level = self.config.first + grown
        if level >= last:
            return Growth(last)
        faded = images - self.config.stay
        return Growth(level, faded / self.config.fade if faded >= 0 else None)

    def real(self, x: Tensor) -> Tensor:
        return seen_at(x, self.growth, self.generator.grids)

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        return self.critic(x, growth=self.growth, **cond).flatten().to(x.dtype)

    def after_step(self, turn: Turn) -> None:
        super().after_step(turn)
        if turn.phase == "critic":
            self.seen_images += len(turn.rng)
