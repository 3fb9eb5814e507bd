"""f-GAN: Generative Neural Samplers by Variational Divergence Minimization (Nowozin et al., 2016). arXiv:1606.00709

Offers: sample

    D_f(P ‖ Q) ≥ sup_T E_P T(x) − E_Q f*(T(x)),   T = g_f(V)

`divergence` chooses f: kl, reverse-kl, pearson, hellinger (squared), jensen-shannon or gan, with the paper's activations of the
output g_f and conjugates f* (its tables 2 and 6). The discriminator maximises the bound; the generator minimises it
(`saturating`), or, as the paper advises, maximises E T(G(z)). Logged: `bound`, which estimates D_f once T is trained (for gan
it is the value of the game, 2 JSD − ln 4).

Ours: the networks of `gan` by default.

Images `(N, C, H, W)` or points `(N, d)`, continuous. Errors: as of the family (`gencli/models/gan/_family.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from gencli.config import opt
from gencli.core import Losses, Rng
from gencli.models.gan._objectives import DIVERGENCES, Objective
from gencli.models.gan._scored import Scored


class FGan(Scored):
    """A game for every f-divergence."""

    @dataclass(frozen=True)
    class Config(Scored.Config):
        divergence: Literal["kl", "reverse-kl", "pearson", "hellinger", "jensen-shannon", "gan"] = opt(
            "jensen-shannon", "what is estimated and minimised"
        )
        saturating: bool = opt(False, "the generator minimises the bound itself")

    def objective(self) -> Objective:
        return DIVERGENCES[self.config.divergence].objective(self.config.saturating)

    def critic_loss(self, x: Tensor, made: Tensor, rng: Rng, **cond: Tensor) -> Losses:
        losses = super().critic_loss(x, made, rng, **cond)
        return {**losses, "bound": -losses["loss"].detach()}
