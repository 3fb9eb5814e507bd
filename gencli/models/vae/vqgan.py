"""Taming Transformers for High-Resolution Image Synthesis: VQGAN (Esser, Rombach & Ommer, 2020). arXiv:2012.09841

Offers: encode, reconstruct

    generator       L_rec + L_codes + λ w L_gan,   L_rec = |x − x̂| + p d(x, x̂),   L_gan = −D(x̂)
    discriminator   ½ max(0, 1 − D(x)) + ½ max(0, 1 + D(x̂))
    λ = |∇_G L_rec| / (|∇_G L_gan| + 10⁻⁶), at most 10⁴, a number without a gradient; ∇_G is by the decoder's last weight

with L_codes as of `vqvae`, d a perceptual distance and D(x) the mean over the scores of patches. Means over an item's
numbers, then over items. λ belongs to a micro-batch: an item's loss depends on its batch-mates. Where no gradients are kept,
the adversarial term is left out.

The perceptual distance is LPIPS where `perceptual` is the path of its weights; otherwise that of the bundled features, which
know small grey images only and whose numbers are larger. What is logged is called `lpips` or `gencli_features`
accordingly. The network is read when training begins: a finished run does without the file.

The discriminator is listened to from `disc_start` on, and learns alone for `disc_lead` before. Until then the generator's
loss is that of a VQ-VAE with a perceptual term. A reconstruction that becomes worse by the adversarial term is seen in
`recon_jump`, its running mean over that at the start; past 1.5 a warning is given once.

Constants are the released code's: w 0.8, p 1, β 0.25 on the encoder's term (there, by an acknowledged mistake, on the
codebook's). Ours: the start from k-means and the restarts of `vqvae`; the discriminator's lead (there none); `distance`
l2, as of MaskGIT's tokeniser.

Raises GencliError as of `vqvae`, and for images of a number of channels that no perceptual network takes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Frozen, Losses, Phase, Spec, Turn
from gencli.models.vae._perceptual import Perceptual
from gencli.models.vae._quantised import CodebookAutoencoder

MOST, LEAST = 1e4, 1e-6
MEMORY, JUMP = 100, 1.5  # steps that a running mean looks back; how much worse is a reason to warn


class VQGAN(CodebookAutoencoder):
    """Encoder, codebook, decoder, and a discriminator of patches."""

    training_only: ClassVar[tuple[str, ...]] = ("quantiser.statistics.", "discriminator.", "watch.")
    compilable: ClassVar[tuple[str, ...]] = ("encoder",)  # the decoder's graph is walked three times
    improves: ClassVar[str] = "generator/recon"
    couples = True

    @dataclass(frozen=True)
    class Config(CodebookAutoencoder.Config):
        codebook: Literal["ema", "gradient"] = opt(
            "gradient", "how the codes learn: moving averages, or the paper's loss"
        )
        encoder: Part = part("networks", "vqgan-encoder", "network from x to the codebook's space", role="map")
        decoder: Part = part("networks", "vqgan-decoder", "network from the codebook's space to x", role="map")
        distance: Literal["l1", "l2"] = opt("l1", "distance of pixels: absolute, or squared")
        perceptual: str = opt("gencli", "perceptual network: gencli (bundled), or a safetensors file of LPIPS weights")
        perceptual_weight: float = opt(1.0, "weight of the perceptual distance; 0 = none", low=0)
        disc_weight: float = opt(0.8, "weight of the adversarial term beside its balance; 0 = none", low=0)
        disc_start: float = opt(
            0.5, "when the discriminator is listened to: share of training, from 1 on a step", low=0
        )
        disc_lead: float = opt(0.02, "how long before that it learns alone: share of training, from 1 on steps", low=0)
        discriminator: Part = part("networks", "patch-discriminator", "network from x to scores", role="map")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        self.discriminator = config.discriminator.build(spec.x, Field("score", (1,)), {})
        self.watch = _Watch()

    @cached_property
    def seen(self) -> Frozen:
        """The perceptual network, read at the first loss."""
        return Frozen(distance=Perceptual(self.config.perceptual, self.spec.x))

    def phases(self) -> list[Phase]:
        return [
            Phase("generator", (self.encoder, self.quantiser, self.decoder)),
            Phase("discriminator", (self.discriminator,)),
        ]

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if turn.phase == "discriminator":
            return self.discriminator_loss(batch["x"], turn)
        return self.generator_loss(batch["x"], turn)

    def generator_loss(self, x: Tensor, turn: Turn) -> Losses:
        """Reconstruction, codes, and how real the discriminator finds it."""
        quantised = self.quantiser(self.encoder(x), turn.rng)
        made = self.decoder(quantised.values).to(x.dtype)
        nearby, logged = self.reconstruction(x, made)
        with core.full_precision(x.device):
            each = self.pulled(nearby, quantised)
            logged["commitment"] = quantised.commitment.mean().detach()
        if self.adversarial(turn):
            doubt = -self.score(made)
            weight = self.balance(nearby.mean(), doubt.mean())
            each = each + self.config.disc_weight * weight * doubt
            logged |= {"adversarial": doubt.mean().detach(), "lambda": weight}
        if self.training:
            self.watch.see(logged["recon"], len(x))
        logged |= {"recon_jump": self.watch.jump(), **self.use_of(quantised.codes, self.quantiser.usage())}
        return {"loss": each.mean(), "each": each, **logged}

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
        return (sizes[0] / (sizes[1] + LEAST)).clamp(max=MOST).detach()

    def discriminator_loss(self, x: Tensor, turn: Turn) -> Losses:
        """The hinge of data and of reconstructions as they are now."""
        if not self.adversarial(turn, self.config.disc_lead):
            return {"loss": 0 * [*self.discriminator.parameters()][-1].sum()}  # a gradient of 0, which moves nothing
        with torch.no_grad():
            made = self.reconstruct(x).to(x.dtype)
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
        if turn.phase == "discriminator":
            return
        self.quantiser.update()
        if self.watch.update(self.adversarial(turn)):
            warnings.warn(
                f"reconstruction is {float(self.watch.jump()):.1f} times as far as before the adversarial term: "
                "lower --disc-weight, or start later with --disc-start",
                stacklevel=2,
            )


class _Watch(nn.Module):
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
