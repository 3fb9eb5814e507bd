"""What generative adversarial networks share: two networks, two phases, a latent to draw and to decode.

    z ~ N(0, I) of `latent` numbers,   x = G(z)

One optimiser step is one turn of the critic on a fresh batch; every `critic_turns`-th step (the first, then each that many
steps later) the generator has a turn too, after the critic's. Training steps therefore count the critic's turns.

The critic is needed in training only: it is not in model.safetensors, not averaged, and comes back on resuming. What is
sampled from is the average of the generator's weights, if the run keeps one.

Batch normalisation in a generator couples the items of a batch (`couples`). Sampling uses its running statistics, so that
a sample depends on its own latent alone; they follow every batch that is made, in the critic's turns too, since those are
made by the generator as it is now. Their values are the last ones even where weights are averaged: with an average choose
another normalisation. The trainer makes them equal over processes after every step.

Data with a range are squashed into it by tanh; points without one are what the generator says.

Raises GencliError for discrete codes.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Model, Phase, Rng, Spec, Turn
from gencli.errors import GencliError


class Adversarial(Model):
    """A generator and a critic; a method gives the two losses."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    training_only = ("critic.",)
    compilable = ()  # a penalty differentiates twice, which compiled networks cannot
    shardable = ()

    @dataclass(frozen=True)
    class Config:
        latent: int = opt(128, "numbers in a latent", low=1)
        critic_turns: int = opt(5, "turns of the critic for each of the generator; steps count the critic's", low=1)
        generator: Part = part("networks", "dcgan-generator", "network from a latent to x", role="map")
        critic: Part = part("networks", "dcgan-critic", "network from x to a score", role="map")

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, dataclasses.replace(spec, cond={}))  # the method is unconditional
        x = spec.x
        if x.vocab is not None and x.range is None:
            raise GencliError(
                f"{self.public_name()} needs continuous data, got {x.kind} of {x.vocab} values",
                "use images or points, or train gated-pixelcnn on these codes",
            )
        self.generator = config.generator.build(Field("latent", (config.latent,)), x, {})
        self.critic = config.critic.build(x, Field("score", (1,)), {})
        self.couples = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.generator.modules())

    def phases(self) -> list[Phase]:
        turns = self.config.critic_turns
        return [Phase("critic", (self.critic,)), Phase("generator", (self.generator,), every=turns)]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x = batch["x"]
        z = self.prior(len(x), turn.rng).to(x)
        if turn.phase == "generator":
            return self.generator_loss(self.decode(z))
        with torch.no_grad():
            made = self.decode(z)
        return self.critic_loss(x, made, turn.rng)

    @abstractmethod
    def critic_loss(self, x: Tensor, made: Tensor, rng: Rng) -> Losses:
        """The critic's loss on data `x` and samples `made`, as many of each."""

    @abstractmethod
    def generator_loss(self, made: Tensor) -> Losses:
        """The generator's loss on samples that it made."""

    def score(self, x: Tensor) -> Tensor:
        """What the critic says, `(N,)`."""
        return self.critic(x).flatten().to(x.dtype)

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """A latent `(n, latent)`."""
        return rng.at("latent").normal((n, self.config.latent))

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x from a latent."""
        made = self.generator(z).to(z.dtype)
        if self.spec.x.range is None:
            return made
        low, high = self.spec.x.range
        return (low + high) / 2 + (high - low) / 2 * made.tanh()
