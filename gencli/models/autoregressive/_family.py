"""What autoregressive models share: the exact likelihood of whole numbers, one after the other.

    log p(x) = Σ_i log p(x_{o(i)} | x_{o(1)}, …, x_{o(i−1)}, c)

The loss is −log p in nats: summed over an item's numbers, mean over items. `bits_per_dim` divides by the numbers of
model space; for codes, bits a pixel of the data is for the evaluation to divide.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli import core
from gencli.core import Batch, Losses, Model, Rng, Spec, Turn
from gencli.models._conditions import drop_labels
from gencli.models._tokens import vocab_of

INVERT = Rng.rows(())  # for `multinomial`, which is given its numbers


class Prefix(NamedTuple):
    """The state of the naive `next`: all tokens so far `(N, i)`, and the conditions."""

    tokens: Tensor
    cond: Batch


class AutoregressiveModel(Model):
    """A subclass gives `order` and `logits`; `start` and `next` are then right, and slow: one full pass a token.

    A label is dropped (becomes the null label, index `vocab`) with the probability `config.label_dropout`, if there is one.
    """

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "tokens"},)
    likelihood: ClassVar[Literal["exact", "bound"]] = "exact"
    conditional: ClassVar[bool] = True  # an unconditional method leaves the data's conditions out of its spec

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec if self.conditional else dataclasses.replace(spec, cond={}))
        self.vocab = vocab_of(spec, self.public_name())

    @property
    @abstractmethod
    def order(self) -> Tensor:
        """`(L,)` position in `x.flatten()` of the i-th token."""

    @abstractmethod
    def logits(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        """`(N, L, V)` from tokens `(N, L)`, both in `order`; row i uses tokens before i only."""

    def start(self, n: int, **cond: Tensor) -> Any:
        """The state before the first token."""
        return Prefix(torch.zeros(n, 0, dtype=torch.long, device=self.device), self.known(cond))

    def next(self, token: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Logits `(N, V)` of the next token, and the new state."""
        tokens = state.tokens if token is None else torch.cat([state.tokens, token[:, None]], dim=1)
        here = tokens.shape[1]
        whole = F.pad(tokens, (0, len(self.order) - here))
        return self.logits(whole, **state.cond)[:, here], Prefix(tokens, state.cond)

    def known(self, cond: Mapping[str, Tensor]) -> Batch:
        """The conditions that this model takes, of those that a batch holds."""
        return {key: value for key, value in cond.items() if key in self.spec.cond}

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        cond = self.known(batch)
        if self.training and self.conditional:
            cond = drop_labels(cond, self.spec.cond, self.config.label_dropout, turn.rng.at("labels"))
        each = -self._log_prob(batch["x"], cond)
        bits = each.mean().detach() / (math.log(2) * self.spec.x.size)
        return {"loss": each.mean(), "each": each, "bits_per_dim": bits}

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """Exact log p(x | c) in nats, `(N,)`; without randomness."""
        return self._log_prob(x, self.known(cond))

    def _log_prob(self, x: Tensor, cond: Batch) -> Tensor:
        tokens = x.flatten(1)[:, self.order]
        logits = self.logits(tokens, **cond)
        with core.full_precision(x.device):
            wide = logits if logits.dtype == torch.float64 else logits.float()
            return -F.cross_entropy(wide.movedim(-1, 1), tokens, reduction="none").sum(1)


class ImageAutoregressiveModel(AutoregressiveModel):
    """Over images `(C, H, W)` or grids `(h, w)` in raster order, channels innermost, or in the network's own; it keeps caches.

    A subclass's Config has `net`, a network of role `sequence`. What it says of tokens is logits of every value; one with a
    `log_prob` gives the density of what it says itself.
    """

    _order: Tensor

    def __init__(self, config: Any, spec: Spec) -> None:
        super().__init__(config, spec)
        shape = spec.x.shape
        self.net: Any = config.net.build(spec.x, self.vocab, self.spec.cond)
        places = torch.arange(spec.x.size).view(shape)
        order = places.movedim(0, -1) if len(shape) == 3 else places
        own = getattr(self.net, "order", order.flatten())  # a network that reads in another order says so
        self.register_buffer("_order", own, persistent=False)

    @property
    def order(self) -> Tensor:
        return self._order

    def logits(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        flat = torch.empty_like(tokens)
        flat[:, self.order] = tokens
        made = self.net(flat.view(len(tokens), *self.spec.x.shape), **self.known(cond))
        return made.flatten(1, -2)[:, self.order]

    def _log_prob(self, x: Tensor, cond: Batch) -> Tensor:
        if hasattr(self.net, "log_prob"):  # a network that tells a density makes no logits of all values
            return self.net.log_prob(self.net(x, raw=True, **cond), x)
        return super()._log_prob(x, cond)

    def start(self, n: int, **cond: Tensor) -> Any:
        return self.net.start(n, **self.known(cond))

    def next(self, token: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        return self.net.next(token, state)


@torch.no_grad()
def at_quantiles(model: ImageAutoregressiveModel, z: Tensor, cond: Batch) -> Tensor:
    """Tokens `(N, *shape)`, one after the other, each at the quantile that its normal number `(N, L)` has."""
    exact = torch.device("cpu") if z.device.type == "mps" else z.device  # float64 is needed
    quantiles = torch.special.ndtr(z.to(exact, torch.float64))
    x = torch.zeros(z.shape, dtype=torch.long, device=z.device)
    state, token = model.start(len(z), **cond), None
    for i, place in enumerate(model.order.tolist()):
        logits, state = model.next(token, state)
        p = logits.to(exact, torch.float64).softmax(-1)
        token = x[:, place] = INVERT.multinomial(p, quantiles[:, i]).to(z.device)
    return x.view(-1, *model.spec.x.shape)
