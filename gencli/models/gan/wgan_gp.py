"""Improved Training of Wasserstein GANs (Gulrajani et al., 2017). arXiv:1704.00028

Offers: sample

    critic     E f(G(z)) − E f(x) + λ E (‖∇f(x̂)‖ − 1)²,   x̂ = x + α (G(z) − x),  α ~ U(0, 1) for each item
    generator  −E f(G(z))

The norm is over all numbers of an item. The penalty is computed in full precision and differentiated twice; the critic has
no batch normalisation, whose gradient would not be an item's own. Logged: `wasserstein`, E f(x) − E f(G(z)), which
estimates the Wasserstein-1 distance once the critic is trained; `penalty`, without λ; `slope`, the mean ‖∇f(x̂)‖. `drift`
adds that times E f(x)², which keeps the critic's level, of which nothing else speaks, near 0 (as `progan` does).

λ 10, five turns of the critic for each of the generator, 128 latent numbers and the default networks are the released code's
for CIFAR-10; its optimiser, Adam with rate 1e-4 and betas 0.5, 0.9 for both networks, is the recipes'.
Ours: in the released code the generator's first turn comes after the critic's first five, here after its first. The laptop
recipes give the critic two turns, a greater rate without momentum and the generator layer normalisation: in the same time
it has more turns of its own, and items stay independent.

Images `(N, C, H, W)` or points `(N, d)`, continuous; without `classes` the labels of the data are left aside.
Errors: as of the family (`gencli/models/gan/_family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Losses, Rng, as_rows
from gencli.models.gan._family import Adversarial


class WganGp(Adversarial):
    """A critic of slope one."""

    @dataclass(frozen=True)
    class Config(Adversarial.Config):
        penalty: float = opt(10.0, "weight of the penalty on the critic's slope", low=0)
        drift: float = opt(0.0, "weight of the square of what the critic says of data", low=0)

    def critic_loss(self, x: Tensor, made: Tensor, rng: Rng, **cond: Tensor) -> Losses:
        real = self.score(x, **cond)
        gain = real - self.score(made, **cond)
        share = rng.at("between").uniform((len(x),)).to(x)
        slope = self.slope(torch.lerp(x, made, as_rows(share, x)), **cond)
        penalty = (slope - 1).square()
        each = self.config.penalty * penalty - gain + self.config.drift * real.square()
        logged = {"wasserstein": gain.mean(), "penalty": penalty.mean(), "slope": slope.mean()}
        return {"loss": each.mean(), "each": each, **{key: value.detach() for key, value in logged.items()}}

    def generator_loss(self, made: Tensor, **cond: Tensor) -> Losses:
        each = -self.score(made, **cond)
        return {"loss": each.mean(), "each": each}
