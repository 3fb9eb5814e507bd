"""Wasserstein GAN, by clipping the critic's weights (Arjovsky, Chintala & Bottou, 2017). arXiv:1701.07875

Offers: sample

    critic     maximises E f(x) − E f(G(z)) over weights in [−c, c],   generator  minimises −E f(G(z))

By duality that is the Wasserstein-1 distance up to the Lipschitz constant of what such weights can make. Weights are clipped
after every step. Logged: `wasserstein`, E f(x) − E f(G(z)), which falls as samples improve.

c 0.01, five turns of the critic for each of the generator are the paper's, RMSProp at 5e-5 the recipe's of images.
Ours: the networks of `gan` by default; the critic must have no batch normalisation, whose weights would be clipped too.

Images `(N, C, H, W)` or points `(N, d)`, continuous. Errors: as of the family (`gencli/models/gan/_family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Losses, Rng, Turn
from gencli.models.gan._objectives import OBJECTIVES, Objective
from gencli.models.gan._scored import Scored


class WGan(Scored):
    """A critic of small weights."""

    @dataclass(frozen=True)
    class Config(Scored.Config):
        clip: float = opt(0.01, "largest size of a weight of the critic", low=1e-6)
        critic_turns: int = opt(5, "turns of the critic for each of the generator; steps count the critic's", low=1)

    def objective(self) -> Objective:
        return OBJECTIVES["wasserstein"]

    def critic_loss(self, x: Tensor, made: Tensor, rng: Rng, **cond: Tensor) -> Losses:
        gain = self.score(x, **cond) - self.score(made, **cond)
        return {"loss": -gain.mean(), "each": -gain, "wasserstein": gain.mean().detach()}

    @torch.no_grad()
    def after_step(self, turn: Turn) -> None:
        super().after_step(turn)
        for weight in self.critic.parameters():
            weight.clamp_(-self.config.clip, self.config.clip)
