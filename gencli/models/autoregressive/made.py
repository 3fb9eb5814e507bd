"""MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray & Larochelle, 2015). arXiv:1502.03509

Offers: sample, exact density

    p(x) = (1 / J) Σ_j Π_i p_j(x_{o(i)} | x_{o(1)}, …, x_{o(i−1)}),  one masked network (`gencli/networks/made.py`)

A step trains one of the J = orders × masks models, one after the other; log p is that of their mixture. Samples are drawn in
the first order, from the mixture over its masks: with one order, the default, that is p itself. Random orders are drawn from
`seed`. x has any shape, whole numbers in 0 … V−1; zeros and ones of the binarise codec too. The method is unconditional:
conditions of the data are left out of its spec. Ours: a softmax over V values instead of a Bernoulli.

Raises GencliError for continuous data and for a network without masks.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive._family import AutoregressiveModel
from gencli.networks.made import Made as Network


class Made(AutoregressiveModel):
    """Masked layers, and a softmax."""

    conditional = False

    @dataclass(frozen=True)
    class Config:
        order: Literal["raster", "random"] = opt("raster", "order of the values; several orders are random ones")
        orders: int = opt(1, "orders that are trained in turn (order-agnostic training)", low=1)
        seed: int = opt(0, "of random orders", low=0)
        net: Part = part("networks", "made", "masked network", role="sequence")

    def __init__(self, config: Any, spec: Spec) -> None:
        if spec.x.vocab == 2 and spec.x.range == (0.0, 1.0):  # black and white is two whole numbers
            spec = dataclasses.replace(spec, x=dataclasses.replace(spec.x, range=None))
        super().__init__(config, spec)
        self.net: Any = config.net.build(spec.x, self.vocab, self.spec.cond)
        if not isinstance(self.net, Network):
            raise GencliError(
                f"made needs a network whose masks may follow any order, {config.net.name} has its own",
                "leave out --net, or train gated-pixelcnn with that network",
            )
        if config.order == "random" or config.orders > 1:
            chance = Rng.batch("order", config.seed, total=config.orders).uniform((config.orders, spec.x.size))
            self.net.arrange(chance.argsort(1))

    @property
    def order(self) -> Tensor:
        return self.net.order

    def logits(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        flat = torch.empty_like(tokens)
        flat[:, self.order] = tokens
        return self.net(flat.view(len(tokens), *self.spec.x.shape)).view(*tokens.shape, self.vocab)[:, self.order]

    def start(self, n: int, **cond: Tensor) -> Any:
        return self.net.start(n)

    def next(self, token: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        return self.net.next(token, state)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if not self.training or self.net.kinds == 1:
            return super().loss(batch, turn)
        each = -self.net.log_prob(batch["x"].long(), turn.step % self.net.kinds)
        bits = each.mean().detach() / (math.log(2) * self.spec.x.size)
        return {"loss": each.mean(), "each": each, "bits_per_dim": bits}

    def _log_prob(self, x: Tensor, cond: Batch) -> Tensor:
        each = [self.net.log_prob(x.long(), kind) for kind in range(self.net.kinds)]
        return torch.stack(each).logsumexp(0) - math.log(len(each))
