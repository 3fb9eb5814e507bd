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

A critic may be kept smooth by a penalty on its gradient, in full precision and differentiated twice, every turn or, n times
as heavy, in a phase of its own every n-th turn (`smooth_every`; lazily, Karras et al., arXiv:1912.04958):

    r1       γ/2 E ‖∇f(x)‖² at data (Mescheder et al., arXiv:1801.04406);   r2  the same at samples
    dragan   γ E (‖∇f(x + u / 2)‖ − 1)², u ~ U(0, 1) for each number (Kodali et al., arXiv:1705.07215, where u is scaled
             by the batch's deviation too, which would make an item depend on the others)

What the critic sees of images, data and samples alike, may be augmented (`nn/diffaug.py`, `nn/bgc.py`), each change with
probability p; the generator learns through the changes, and penalties are of the critic behind them.

Truncation draws z anew where a number is beyond ±t (Brock et al., arXiv:1809.11096), by inversion, so that it is a function
of z: z′ = Φ⁻¹(Φ(−t) + (Φ(t) − Φ(−t)) Φ(z)).

Raises GencliError for discrete codes, for classes of data without labels, and for augmentations of what is no image.
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
from gencli.nn.bgc import bgc
from gencli.nn.diffaug import diffaug

Smooth = Literal["none", "r1", "r2", "dragan"]
Augment = Literal["none", "diffaug", "bgc"]
AUGMENTS = {"diffaug": diffaug, "bgc": bgc}


class Adversarial(Model):
    """A generator and a critic; a method gives the two losses."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "pixels"},)
    training_only: ClassVar[tuple[str, ...]] = ("critic.",)
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
        smooth_every: int = opt(1, "turns of the critic for each of that penalty, then as many times as heavy", low=1)
        augment: Augment = opt("none", "what the critic sees of images is changed: diffaug, or bgc as of stylegan2-ada")
        augment_p: float = opt(1.0, "probability of each change", low=0, high=1)
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
        x = spec.x
        if x.vocab is not None and x.range is None:
            raise GencliError(
                f"{self.public_name()} needs continuous data, got {x.kind} of {x.vocab} values",
                "use images or points, or train gated-pixelcnn on these codes",
            )
        if config.augment != "none" and len(x.shape) != 3:
            raise GencliError(
                f"--augment {config.augment} changes images, the data are {x.kind} of shape {x.shape}", "leave it out"
            )
        if config.augment == "bgc" and x.shape[0] not in (1, 3):
            raise GencliError(
                f"--augment bgc turns colours of 1 or 3 channels, the data have {x.shape[0]}", "give --augment diffaug"
            )
        self.generator, self.critic = self.built()
        self.couples = any(
            isinstance(m, nn.modules.batchnorm._BatchNorm) or getattr(m, "couples", False)
            for net in (self.generator, self.critic)
            for m in net.modules()
        )

    def built(self) -> tuple[Any, Any]:
        """The generator and the critic."""
        config, x, cond = self.config, self.spec.x, self.spec.cond
        generator = config.generator.build(Field("latent", (config.latent,)), x, cond)
        return generator, config.critic.build(x, Field("score", (1,)), cond)

    def phases(self) -> list[Phase]:
        turns, rate = self.config.critic_turns, self.config.critic_lr
        optim = {"lr": rate} if rate else {}
        critic = [Phase("critic", (self.critic,), optim=optim)]
        if self.lazy:
            critic.append(Phase("smooth", (self.critic,), every=self.config.smooth_every, optim=optim, shares="critic"))
        return [*critic, Phase("generator", (self.generator,), every=turns)]

    @property
    def lazy(self) -> bool:
        """Whether the penalty has turns of its own."""
        return self.config.smooth != "none" and self.config.smooth_every > 1

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        x, cond = self.shown(batch, turn.rng)
        if turn.phase == "generator":
            made = self.samples(x, turn.rng, **cond)
            return self.generator_loss(self.seen(made, turn.rng.at("seen", "samples")), **cond)
        with torch.no_grad():
            made = self.samples(x, turn.rng, **cond)
        if turn.phase == "smooth":
            return self.lazily(x, made, turn.rng, **cond)
        data, samples = self.seen(x, turn.rng.at("seen", "data")), self.seen(made, turn.rng.at("seen", "samples"))
        losses = self.critic_loss(data, samples, turn.rng, **cond)
        if self.config.smooth == "none" or self.lazy:
            return losses
        each = self.roughness(x, made, turn.rng.at("smooth"), **cond)
        whole = losses["each"] + self.config.smooth_weight * each
        return {**losses, "loss": whole.mean(), "each": whole, self.config.smooth: each.mean().detach()}

    def lazily(self, x: Tensor, made: Tensor, rng: Rng, **cond: Tensor) -> Losses:
        """The penalty alone, for all the turns that went without it."""
        rough = self.roughness(x, made, rng.at("smooth"), **cond)
        each = self.config.smooth_every * self.config.smooth_weight * rough
        each = each + 0 * self.score(x, **cond)  # so that weights that no slope depends on have a gradient, of 0
        return {"loss": each.mean(), "each": each, self.config.smooth: rough.mean().detach()}

    def shown(self, batch: Batch, rng: Rng) -> tuple[Tensor, Batch]:
        """The data as the networks are to take them, and what they are told besides."""
        return self.real(batch["x"]), {key: batch[key] for key in self.spec.cond}

    def real(self, x: Tensor) -> Tensor:
        """The data as the networks are to take them."""
        return x

    def samples(self, x: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        """As many samples to learn from as there are data."""
        return self.decode(self.prior(len(x), rng, **cond).to(x), **cond)

    def seen(self, x: Tensor, rng: Rng) -> Tensor:
        """x as the critic sees it, changed in full precision."""
        if self.config.augment == "none":
            return x
        assert self.spec.x.range is not None, "images have a range"
        low, high = self.spec.x.range
        unit = x if (low, high) == (-1.0, 1.0) else (2 * x - (low + high)) / (high - low)
        with full_precision(x.device):
            return self.ranged(AUGMENTS[self.config.augment](unit, self.augment_p, rng))

    @property
    def augment_p(self) -> Tensor | float:
        """The probability of each change."""
        return float(self.config.augment_p)

    @abstractmethod
    def critic_loss(self, x: Tensor, made: Tensor, rng: Rng, **cond: Tensor) -> Losses:
        """The critic's loss on data `x` and samples `made`, as many of each, of the same classes."""

    @abstractmethod
    def generator_loss(self, made: Tensor, **cond: Tensor) -> Losses:
        """The generator's loss on samples that it made."""

    def score(self, x: Tensor, **cond: Tensor) -> Tensor:
        """What the critic says, `(N,)`."""
        return self.critic(x, **cond).flatten().to(x.dtype)

    def slope(self, at: Tensor, rng: Rng | None = None, /, **cond: Tensor) -> Tensor:
        """`(N,)` the norm of the critic's gradient at each of `at`, in full precision; it can be differentiated.

        With `rng` the critic looks through the augmentation that it draws.
        """
        twice = torch.is_grad_enabled()
        with full_precision(at.device), torch.enable_grad():
            at = at.detach().requires_grad_()
            looked = at if rng is None else self.seen(at, rng)
            (gradient,) = torch.autograd.grad(self.score(looked, **cond).sum(), at, create_graph=twice)
        return torch.linalg.vector_norm(gradient.flatten(1), dim=1)  # its derivative at 0 is 0, a root's is infinite

    def roughness(self, x: Tensor, made: Tensor, rng: Rng, **cond: Tensor) -> Tensor:
        """`(N,)` the penalty that `smooth` names, without its weight."""
        if self.config.smooth == "dragan":
            near = x + 0.5 * rng.uniform(x.shape).to(x)
            return (self.slope(near, rng.at("seen"), **cond) - 1).square()
        return self.slope(x if self.config.smooth == "r1" else made, rng.at("seen"), **cond).square() / 2

    def after_step(self, turn: Turn) -> None:
        spectral.settle(self.critic)

    def prior(self, n: int, rng: Rng, **cond: Tensor) -> Tensor:
        """A latent `(n, latent)`."""
        return rng.at("latent").normal((n, self.config.latent))

    def decode(self, z: Tensor, **cond: Tensor) -> Tensor:
        """x from a latent."""
        made = self.generator(z, **cond).to(z.dtype)
        return made if self.spec.x.range is None else self.ranged(made.tanh())

    def ranged(self, x: Tensor) -> Tensor:
        """Values in [−1, 1] to the data's range."""
        assert self.spec.x.range is not None, "images have a range"
        low, high = self.spec.x.range
        return x if (low, high) == (-1.0, 1.0) else (low + high) / 2 + (high - low) / 2 * x

    def truncate(self, z: Any, amount: float, **cond: Tensor) -> Any:
        """The latent with no number beyond ± `amount`, of the distribution of redrawing those that are."""
        wide = z.cpu().double()
        below = torch.special.ndtr(torch.tensor(-float(amount), dtype=torch.float64))
        return torch.special.ndtri(below + (1 - 2 * below) * torch.special.ndtr(wide)).to(z)
