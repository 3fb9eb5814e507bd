"""beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework (Higgins et al., 2017).

Offers: sample, bound, encode, reconstruct

    loss = E_q(z|x)[−log p(x|z)] + β KL(q(z|x) ‖ p(z))
    with gamma: loss = E_q(z|x)[−log p(x|z)] + γ |KL(q(z|x) ‖ p(z)) − C|,   C from 0 to `capacity` in `capacity_steps` steps

β > 1 makes the latent say less of x, and its numbers more independent. β = 1 is `vae` to the last bit. The second line is that
of Burgess et al. (2018, arXiv:1804.03599): the latent may say C nats, more as training goes on. KL is an item's own, as in
both papers' equations, in nats summed over the latent; many implementations take the batch's mean before |·|.

Paper: β = 4 for dSprites; 10 latents, Adagrad. Burgess et al.: γ = 1,000, C up to 25 nats in 100,000 steps, Adam.
All else, the bounds of evaluation too, is `vae`: `log_prob` is the ELBO or IWAE-k whatever β.

Raises GencliError as `vae` does; for the objective iwae, which has no KL to weigh, unless β is 1 and γ 0; for a warm-up of
the weight with γ.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gencli.config import opt
from gencli.core import Losses, Spec, Turn
from gencli.errors import GencliError
from gencli.models.vae._family import GaussianVAE, Terms


class BetaVAE(GaussianVAE):
    """A VAE whose KL divergence has a weight, or a size that it should have."""

    @dataclass(frozen=True)
    class Config(GaussianVAE.Config):
        beta: float = opt(4.0, "weight of the KL divergence", low=0)
        gamma: float = opt(0.0, "weight of |KL − C|, in place of beta; 0 = without", low=0)
        capacity: float = opt(25.0, "nats that C reaches", low=0)
        capacity_steps: int = opt(100_000, "steps in which it does", low=1)

    def __init__(self, config: Config, spec: Spec) -> None:
        if config.objective == "iwae" and (config.beta != 1 or config.gamma):
            weight = f"gamma {config.gamma:g}" if config.gamma else f"beta {config.beta:g}"
            raise GencliError(
                f"{weight} weighs a KL divergence, and the objective iwae has none", "use --objective elbo, or --beta 1"
            )
        if config.gamma and config.kl_warmup:
            raise GencliError(
                f"kl-warmup {config.kl_warmup} raises beta, in whose place is gamma {config.gamma:g}",
                "leave one of the two out",
            )
        super().__init__(config, spec)

    def objective(self, terms: Terms, turn: Turn) -> tuple[Tensor, Losses]:
        config = self.config
        if not config.gamma:
            return terms.recon + config.beta * self.kl_weight(turn) * terms.kl, {}
        target = config.capacity * min(1.0, turn.step / config.capacity_steps)
        return terms.recon + config.gamma * (terms.kl - target).abs(), {"capacity": terms.kl.new_tensor(target)}
