"""What autoencoders that are judged by a discriminator of patches share: distances, the balance of two terms, the hinge.

generator       L = L_rec + what the method adds + λ w L_gan,   L_rec = |x − x̂| + p d(x, x̂),   L_gan = −D(x̂)
discriminator   ½ max(0, 1 − D(x)) + ½ max(0, 1 + D(x̂))
λ = |∇_G L_rec| / (|∇_G L_gan| + least), at most 10⁴, a number without a gradient; ∇_G is by the decoder's last weight
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Frozen, Losses, Model, Spec, Turn
from gencli.models.vae._perceptual import Perceptual

MOST = 1e4
MEMORY, JUMP = 100, 1.5  # steps that a running mean looks back; how much worse is a reason to warn


@dataclass(frozen=True)
class JudgedConfig:
    """Settings of the distances and of the discriminator."""

    distance: Literal["l1", "l2"] = opt("l1", "distance of pixels: absolute, or squared")
    perceptual: str = opt("gencli", "perceptual network: gencli (bundled), or a safetensors file of LPIPS weights")
    perceptual_weight: float = opt(1.0, "weight of the perceptual distance; 0 = none", low=0)
    disc_weight: float = opt(0.8, "weight of the adversarial term beside its balance; 0 = none", low=0)
    disc_start: float = opt(0.5, "when the discriminator is listened to: share of training, from 1 on a step", low=0)
    disc_lead: float = opt(0.02, "how long before that it learns alone: share of training, from 1 on steps", low=0)
    discriminator: Part = part("networks", "patch-discriminator", "network from x to scores", role="map")


class Made(NamedTuple):
    """A reconstruction, what the method adds to each item's loss `(N,)`, and what is logged of it."""

    x: Tensor
    extra: Tensor
    logged: Losses


class Judged(Model):
    """An autoencoder's other base, for settings of `JudgedConfig`; a method says how x is made again."""

    couples = True
    improves: ClassVar[str] = "generator/recon"
    compilable: ClassVar[tuple[str, ...]] = ("encoder",)  # the decoder's graph is walked three times
    least: ClassVar[float] = 1e-6
    decoder: nn.Module

    def judge_by(self, config: Any, spec: Spec) -> None:
        """Build the discriminator."""
        self.discriminator = config.discriminator.build(spec.x, Field("score", (1,)), {})
        self.watch = Watch()

    @abstractmethod
    def made_of(self, x: Tensor, turn: Turn) -> Made:
        """x through the latents and back, in training."""

    @cached_property
    def seen(self) -> Frozen:
        """The perceptual network, read at the first loss."""
        return Frozen(distance=Perceptual(self.config.perceptual, self.spec.x))

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if turn.phase == "discriminator":
            return self.discriminator_loss(batch["x"], turn)
        return self.generator_loss(batch["x"], turn)

    def generator_loss(self, x: Tensor, turn: Turn) -> Losses:
        """Reconstruction, what the method adds, and how real the discriminator finds it."""
        made = self.made_of(x, turn)
        nearby, logged = self.reconstruction(x, made.x)
        with core.full_precision(x.device):
            each = nearby + made.extra
        logged |= made.logged
        if self.adversarial(turn):
            doubt = -self.score(made.x)
            weight = self.balance(nearby.mean(), doubt.mean())
            each = each + self.config.disc_weight * weight * doubt
            logged |= {"adversarial": doubt.mean().detach(), "lambda": weight}
        if self.training:
            self.watch.see(logged["recon"], len(x))
        return {"loss": each.mean(), "each": each, "recon_jump": self.watch.jump(), **logged}

    def reconstruction(self, x: Tensor, made: Tensor) -> tuple[Tensor, Losses]:
        """L_rec `(N,)`, and its parts as they are logged."""
        config = self.config
        with core.full_precision(x.device):
            apart = made - x
            each = (apart.abs() if config.distance == "l1" else apart.square()).flatten(1).mean(1)
        logged = {"recon": each.mean().detach()}
        if config.perceptual_weight:
            seen = self.seen.to(x.device).distance(x, made).to(each)
            each = each + config.perceptual_weight * seen
            logged["gencli_features" if config.perceptual == "gencli" else "lpips"] = seen.mean().detach()
        return each, logged

    def balance(self, nearby: Tensor, doubt: Tensor) -> Tensor:
        """λ: how many times larger the reconstruction's gradient is at the decoder's last weight."""
        last = [p for p in self.decoder.parameters() if p.ndim > 1][-1]
        if not (torch.is_grad_enabled() and last.requires_grad):
            return torch.zeros_like(nearby)
        sizes = [torch.autograd.grad(term, last, retain_graph=True)[0].norm() for term in (nearby, doubt)]
        return (sizes[0] / (sizes[1] + self.least)).clamp(max=MOST).detach()

    def discriminator_loss(self, x: Tensor, turn: Turn) -> Losses:
        """The hinge of data and of reconstructions as they are now."""
        if not self.adversarial(turn, self.config.disc_lead):
            return {"loss": 0 * [*self.discriminator.parameters()][-1].sum()}  # a gradient of 0, which moves nothing
        model: Any = self  # an autoencoder too
        with torch.no_grad():
            made = model.reconstruct(x).to(x.dtype)
        real, fake = self.patches(x), self.patches(made)
        each = ((1 - real).relu() + (1 + fake).relu()).mean(1) / 2
        logged = {"real": real.mean().detach(), "fake": fake.mean().detach()}
        return {"loss": each.mean(), "each": each, **logged}

    def patches(self, x: Tensor) -> Tensor:
        """What the discriminator says of each patch `(N, patches)`."""
        return self.discriminator(x).flatten(1).to(x.dtype)

    def score(self, x: Tensor) -> Tensor:
        """What it says of each item `(N,)`."""
        return self.patches(x).mean(1)

    def adversarial(self, turn: Turn, lead: float = 0.0) -> bool:
        """Whether the discriminator is listened to, or `lead` before that."""
        begin, lead = (value * turn.steps if value < 1 else value for value in (self.config.disc_start, lead))
        return self.config.disc_weight > 0 and turn.step >= begin - lead

    def after_step(self, turn: Turn) -> None:
        if turn.phase != "discriminator" and self.watch.update(self.adversarial(turn)):
            warnings.warn(
                f"reconstruction is {float(self.watch.jump()):.1f} times as far as before the adversarial term: "
                "lower --disc-weight, or start later with --disc-start",
                stacklevel=2,
            )


class Watch(nn.Module):
    """The running mean of the reconstruction's distance, beside what it was when the adversarial term began."""

    recent: Tensor
    before: Tensor
    warned: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("recent", "before", "warned"):
            self.register_buffer(name, torch.zeros(()))  # 0 = not known, not yet
        self._pending: Tensor | None = None

    def see(self, recon: Tensor, items: int) -> None:
        """A micro-batch's mean over so many items."""
        seen = torch.stack([recon * items, torch.full_like(recon, items)]).to(self.recent)
        self._pending = seen if self._pending is None else self._pending + seen

    def update(self, adversarial: bool) -> bool:
        """After each step, on every process; whether there is reason to warn, which is once."""
        pending, self._pending = self._pending, None
        total, items = core.all_reduce(torch.zeros(2).to(self.recent) if pending is None else pending)
        if not items:
            return False
        self.recent.copy_(torch.lerp(self.recent, total / items, 1 / MEMORY) if self.recent else total / items)
        if not adversarial:
            self.before.copy_(self.recent)
        jumped = bool(self.before > 0 and self.recent > JUMP * self.before and not self.warned)
        self.warned.fill_(max(jumped, float(self.warned)))
        return jumped

    def jump(self) -> Tensor:
        """How many times larger the distance is; 1 where the term has been there from the beginning."""
        return self.recent / self.before if self.before else torch.ones_like(self.recent)
