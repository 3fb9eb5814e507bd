"""What networks have in common that are trained by one of the objectives of `_objectives.py`.

Logged besides the losses: `real` and `fake`, the shares of data and of samples that the discriminator takes for what they are.
Near 1 both it has won, and the generator learns little; near 0.5 it cannot tell.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Losses, Rng, Spec
from gencli.models.gan._family import Adversarial
from gencli.models.gan._objectives import Objective


class Scored(Adversarial):
    """A subclass says its objective."""

    @dataclass(frozen=True)
    class Config(Adversarial.Config):
        latent: int = opt(64, "numbers in a latent", low=1)
        critic_turns: int = opt(1, "turns of the discriminator for each of the generator", low=1)
        generator: Part = part(
            "networks", "mlp", "network from a latent to x", role="map", width=128, layers=3, activation="relu"
        )
        critic: Part = part(
            "networks", "mlp", "network from x to a score", role="map", width=128, layers=3, activation="relu"
        )

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        self.by = self.objective()

    @abstractmethod
    def objective(self) -> Objective:
        """The two losses."""

    def critic_loss(self, x: Tensor, made: Tensor, rng: Rng, **cond: Tensor) -> Losses:
        real, fake = self.scores(x, made, **cond)
        each = self.by.data(real) + self.by.samples(fake)
        told = {"real": real > self.by.middle, "fake": fake < self.by.middle}
        return {"loss": each.mean(), "each": each, **{key: right.to(each).mean() for key, right in told.items()}}

    def scores(self, x: Tensor, made: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """What the discriminator says of data and of samples, `(N,)` each."""
        return self.score(x, **cond), self.score(made, **cond)

    def generator_loss(self, made: Tensor, **cond: Tensor) -> Losses:
        each = self.by.generator(self.score(made, **cond))
        return {"loss": each.mean(), "each": each}
