"""What every model with latents shares whose log p(x) is bounded: the bound, its name, and the weight of its KL divergence.

    ELBO = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))         IWAE-k = log (1/k) Σ p(x, z_i) / q(z_i|x),   z_i ~ q(z|x)
    β = min(1, step / kl_warmup)

`kl_warmup` counts steps, as the warm-up of the learning rate does, so that a run that is continued for longer keeps its β.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Losses, Model, Rng, Turn, full_precision
from gencli.models.vae._decoders import Decoder

Weigh = Callable[[int, bool], Tensor]
"""Of draw i `(N,)` in nats: log p(x, z) − log q(z|x), or log p(x|z) less the KL divergence in closed form, where it has one."""


def warmup() -> Any:
    """The setting `kl_warmup`."""
    return opt(0, "steps in which the weight of the KL divergence rises from 0 to 1", low=0)


class Bounded(Model):
    """A model with an ELBO and the bounds above it."""

    likelihood: ClassVar[Literal["exact", "bound"]] = "bound"
    observed: Decoder  # of models that have p(x|z) as a part

    @abstractmethod
    def weighing(self, x: Tensor, rng: Rng, exact: torch.dtype, cond: Mapping[str, Tensor]) -> Weigh:
        """What weighs one draw after the other, numbered from 0; sums in the precision `exact`."""

    @property
    def mass(self) -> bool:
        """Whether `log_prob` is about probabilities of values rather than a density."""
        return self.observed.mass

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def wide(self, made: Tensor) -> Tensor:
        """What a network made, at least in float32."""
        return made.to(torch.promote_types(self._dtype, torch.float32))

    def kl_weight(self, turn: Turn) -> float:
        """β: 0 at the first step, 1 from the end of the warm-up on."""
        steps: int = self.config.kl_warmup
        return min(1.0, turn.step / steps) if steps else 1.0

    def shown(self, recon: Tensor, kl: Tensor, nats: Tensor | None = None) -> Losses:
        """The ELBO's terms for the log, and −log p in bits, from `nats` where they are not the terms' sum."""
        terms = {"recon": recon.mean().detach(), "kl": kl.mean().detach()}
        if self.mass:
            total = terms["recon"] + terms["kl"] if nats is None else nats
            terms["bits_per_dim"] = total / (math.log(2) * self.spec.x.size)
        return terms

    def estimate(self, samples: int) -> str:
        """What `log_prob` of that many draws is."""
        return "ELBO" if samples == 1 else f"IWAE-{samples}"

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """A lower bound of log p(x) `(N,)` in nats, in float64 where the device has it.

        Args:
            x: data in model space.
            rng: noise, one row an item.
            samples: 1 gives the ELBO, with the KL divergence in closed form where it has one; more give the
                importance-weighted bound, one draw after the other, so that memory does not grow with their number.
            cond: what the model is told; others are not used.
        """
        with full_precision(x.device):
            weigh = self.weighing(x, rng, torch.float32 if x.device.type == "mps" else torch.float64, cond)
            total = weigh(0, samples == 1)
            for i in range(1, samples):
                total = torch.logaddexp(total, weigh(i, False))
            return total - math.log(samples)
