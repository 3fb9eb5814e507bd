"""What generative adversarial networks share: two networks, two phases, a latent to draw and to decode.

    z ~ N(0, I) of `latent` numbers,   x = G(z),   or G(z, y) and a critic of (x, y) with `classes`

One optimiser step is one turn of the critic on a fresh batch; every `critic_turns`-th step (the first, then each that many
steps later) the generator has a turn too, after the critic's. Training steps therefore count the critic's turns.

The critic is needed in training only: it is not in model.safetensors, not averaged, and comes back on resuming. What is
sampled from is the average of the generator's weights, if the run keeps one.

Batch normalisation in a generator couples the items of a batch (`couples`). Sampling uses its running statistics, so that
a sample depends on its own latent alone; they follow every batch that is made, in the critic's turns too, since those are
made by the generator as it is now. Their values are the last ones even where weights are averaged: with an average choose
another normalisation. The trainer makes them equal over processes after every step.

Data with a range are squashed into it by tanh; points without one are what the generator says.

A critic may be kept smooth by a penalty on its gradient, in full precision and differentiated twice, every turn:

    r1       γ/2 E ‖∇f(x)‖² at data (Mescheder et al., arXiv:1801.04406);   r2  the same at samples
    dragan   γ E (‖∇f(x + u / 2)‖ − 1)², u ~ U(0, 1) for each number (Kodali et al., arXiv:1705.07215, where u is scaled
             by the batch's deviation too, which would make an item depend on the others)

Raises GencliError for discrete codes, and for classes of data without labels.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Model, Phase, Rng, Spec, Turn, full_precision
from gencli.errors import GencliError
from gencli.nn import spectral

Smooth = Literal["none", "r1", "r2", "dragan"]


class Adversarial(Model):
    """A generator and a critic; a method gives the two losses."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    training_only = ("critic.",)
    improves: ClassVar[str] = "critic/loss"
    compilable = ()  # a penalty differentiates twice, which compiled networks cannot
    shardable = ()

    @dataclass(frozen=True)
    class Config:
        latent: int = opt(128, "numbers in a latent", low=1)
        critic_turns: int = opt(5, "turns of the critic for each of the generator; steps count the critic's", low=1)
        critic_lr: float = opt(0.0, "the critic's learning rate; 0 = the run's", low=0)
        smooth: Smooth = opt("none", "penalty on the critic's gradient")
        smooth_weight: float = opt(1.0, "γ of that penalty", low=0)
        classes: bool = opt(False, "both networks are told the class")
        generator: Part = part("networks", "dcgan-generator", "network from a latent to x", role="map")
        critic: Part = part("networks", "dcgan-critic", "network from x to a score", role="map")

    def __init__(self, config: Any, spec: Spec) -> None:
        label = spec.cond.get("label") if config.classes else None
        if config.classes and label is None:
            raise GencliError(
                f"{self.public_name()} is to be told classes, but the data have no labels",
                "leave --classes out, or train on labelled data",
            )
        super().__init__(config, dataclasses.replace(spec, cond={"label": label} if label else {}))
        x, cond = spec.x, self.spec.cond
        if x.vocab is not None and x.range is None:
            raise GencliError(
                f"{self.public_name()} needs continuous data, got {x.kind} of {x.vocab} values",
                "use images or points, or train gated-pixelcnn on these codes",
            )
        self.generator = config.generator.build(Field("latent", (config.latent,)), x, cond)
        self.critic = config.critic.build(x, Field("score", (1,)), cond)
        self.couples = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.modules())

    def phases(self) -> list[Phase]:
        turns, rate = self.config.critic_turns, self.config.critic_lr
        critic = Phase("critic", (self.critic,), optim={"lr": rate} if rate else {})
        return [critic, Phase("generator", (self.generator,), every=turns)]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x, cond = batch["x"], {key: batch[key] for key in self.spec.cond}
        z = self.prior(len(x), turn.rng).to(x)
        if turn.phase == "generator":
            return self.generator_loss(self.decode(z, **cond), **cond)
        with torch.no_grad():
            made = self.decode(z, **cond)
        losses = self.critic_loss(x, made, turn.rng, **cond)
        if self.config.smooth == "none":
            return losses
        each = self.roughness(x, made, turn.rng.at("smooth"), **cond)
        whole = losses["each"] + self.config.smooth_weight * each
        return {**losses, "loss": whole.mean(), "each": whole, self.config.smooth: each.mean().detach()}

    @abstractmethod
    def critic_loss(self, x: Tensor, made: Tensor, rng: Rng, **cond: Tensor) -> Losses:
        """The critic's loss on data `x` and samples `made`, as many of each, of the same classes."""

    @abstractmethod
    def generator_loss(self, made: Tensor, **cond: Tensor) -> Losses:
        """The generator's loss on samples that it made."""

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """What the critic says, `(N,)`."""
        return self.critic(x, **cond).flatten().to(x.dtype)

    def slope(self, at: Tensor, **cond: Tensor) -> Tensor:
        """`(N,)` the norm of the critic's gradient at each of `at`, in full precision; it can be differentiated."""
        twice = torch.is_grad_enabled()
        with full_precision(at.device), torch.enable_grad():
            at = at.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.score(at, **cond).sum(), at, create_graph=twice)
        return torch.linalg.vector_norm(gradient.flatten(1), dim=1)  # its derivative at 0 is 0, a root's is infinite

    def roughness(self, x: Tensor, made: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        """`(N,)` the penalty that `smooth` names, without its weight."""
        if self.config.smooth == "dragan":
            near = x + 0.5 * rng.uniform(x.shape).to(x)
            return (self.slope(near, **cond) - 1).square()
        return self.slope(x if self.config.smooth == "r1" else made, **cond).square() / 2

    def after_step(self, turn: Turn) -> None:
        spectral.settle(self.critic)

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """A latent `(n, latent)`."""
        return rng.at("latent").normal((n, self.config.latent))

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x from a latent."""
        made = self.generator(z, **cond).to(z.dtype)
        if self.spec.x.range is None:
            return made
        low, high = self.spec.x.range
        return (low + high) / 2 + (high - low) / 2 * made.tanh()
