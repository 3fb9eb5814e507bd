"""MADE: the masked network (Germain et al., 2015). arXiv:1502.03509

Offers: sequence

    h = relu(b + (W ⊙ M) x),  M_kj = [m(k) ≥ m(j)];   logits = c + (V ⊙ M) h + (A ⊙ M) x,  M_dk = [m(d) > m(k)]

m(d) is a position's rank in the order, 1 … D; m(k) of a hidden unit is drawn between the least of the layer before and D − 1:
a unit sees the positions up to its number, and a position is told by units of smaller numbers. Several such sets of numbers
make as many models of the same weights; `masks` of them are mixed with equal weights,

    p(x_i | x_<i) = Σ_j w_j p_j(x_i | x_<i),   w_j ∝ Π_{earlier} p_j(x | …)

which is exactly the chain rule of (1 / masks) Σ_j p_j(x). The order is row, column, channel, or what `arrange` says. Ours: any
number of values (a softmax each); images are read on −1 … 1, codes as learned vectors. Stepping computes every hidden unit
once, when the last position that it sees is known: a whole sample costs one pass.

Tokens `(N, *x.shape)` of any shape; logits `(N, *x.shape, V)`. Conditions are not used: the method is unconditional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli import core
from gencli.config import Component, opt
from gencli.core import Field, Rng
from gencli.errors import GencliError
from gencli.networks._causal import Tokens


class Made(nn.Module, Component):
    """Masked fully connected layers."""

    role: ClassVar[str] = "sequence"
    ranks: Tensor  # (orders, D), 1 … D

    @dataclass(frozen=True)
    class Config:
        hidden: tuple[int, ...] = opt((500, 500), "hidden units of each layer")
        masks: int = opt(1, "sets of masks for each order, mixed with equal weights", low=1)
        direct: bool = opt(True, "connections from inputs to outputs")
        embed: int = opt(8, "numbers that a code becomes", low=1)
        seed: int = opt(0, "of the masks", low=0)

    def __init__(self, config: Config, x: Field, vocab: int, cond: Mapping[str, Field] | None = None) -> None:
        super().__init__()
        if not config.hidden or min(config.hidden) < 1:
            raise GencliError(
                f"hidden layers are {config.hidden}", "give a size of at least 1 for each, such as 500,500"
            )
        self.config, self.vocab, self.shape, self.size = config, vocab, x.shape, x.size
        self.read = Tokens(x, vocab, config.embed)
        sizes = [self.size * self.read.features, *config.hidden, self.size * vocab]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.direct = nn.Linear(sizes[0], sizes[-1], bias=False) if config.direct else None
        places = torch.arange(self.size).view(self.shape)
        raster = (places.movedim(0, -1) if len(self.shape) == 3 else places).flatten()
        self.arrange(raster[None])

    def arrange(self, orders: Tensor) -> None:
        """Set the orders `(R, D)`, each the positions in `x.flatten()` as they are visited, and draw masks for them."""
        self.register_buffer("ranks", torch.argsort(orders, dim=1) + 1)
        kinds = len(orders) * self.config.masks
        rng = Rng.batch("made", self.config.seed, total=kinds)
        least = torch.full((kinds, 1), min(1, self.size - 1), device=rng.device)
        for i, units in enumerate(self.config.hidden):
            top = self.size - least  # numbers least … D − 1
            drawn = least + (rng.at(i).uniform((kinds, units), torch.float64) * top).long().clamp(max=top - 1)
            self.register_buffer(f"numbers{i}", drawn.to(orders.device))
            least = drawn.amin(1, keepdim=True)

    @property
    def kinds(self) -> int:
        """Number of models in one: orders × masks."""
        return len(self.ranks) * self.config.masks

    @property
    def order(self) -> Tensor:
        """`(D,)` the positions of the first order as they are visited."""
        return self.ranks[0].argsort()

    def degrees(self, kind: int) -> list[Tensor]:
        """m of the inputs, of each hidden layer, and of the outputs."""
        ranks = self.ranks[kind // self.config.masks]
        hidden = [cast(Tensor, getattr(self, f"numbers{i}"))[kind] for i in range(len(self.config.hidden))]
        inputs, outputs = (ranks.repeat_interleave(each) for each in (self.read.features, self.vocab))
        return [inputs, *hidden, outputs]

    def of(self, tokens: Tensor, kind: int) -> Tensor:
        """Logits `(N, *x.shape, V)` of one set of masks."""
        x = h = self.read(tokens.flatten(1), self.like.dtype)
        degrees = self.degrees(kind)
        for i, layer in enumerate(self.stack[:-1]):
            seen = degrees[i + 1][:, None] >= degrees[i]
            h = F.linear(h, layer.weight * seen, layer.bias).relu()
        last = self.stack[-1]
        made = F.linear(h, last.weight * (degrees[-1][:, None] > degrees[-2]), last.bias)
        if self.direct is not None:
            made = made + F.linear(x, self.direct.weight * (degrees[-1][:, None] > degrees[0]))
        return made.view(len(tokens), *self.shape, self.vocab)

    def log_prob(self, tokens: Tensor, kind: int) -> Tensor:
        """log p `(N,)` under one set of masks."""
        return self._chosen(tokens, kind)[1].sum(1)

    def forward(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        """Logits `(N, *x.shape, V)`, each from earlier tokens only: of the first order, its masks mixed."""
        if self.config.masks == 1:
            return self.of(tokens, 0)
        parts = []
        for kind in range(self.config.masks):
            log, chosen = self._chosen(tokens, kind)
            ordered = chosen[:, self.order]
            before = (ordered.cumsum(1) - ordered)[:, self.ranks[0] - 1]  # log p of what is earlier, at each position
            parts.append((log + before[..., None], before))
        with core.full_precision(tokens.device):
            joint, before = (torch.stack(part).logsumexp(0) for part in zip(*parts, strict=True))
            return (joint - before[..., None]).view(len(tokens), *self.shape, self.vocab)

    def _chosen(self, tokens: Tensor, kind: int) -> tuple[Tensor, Tensor]:
        """log p of every value at each position `(N, D, V)`, and of the token there `(N, D)`."""
        made = self.of(tokens, kind)
        with core.full_precision(tokens.device):
            wide = made if made.dtype == torch.float64 else made.float()
            log = wide.view(len(tokens), self.size, self.vocab).log_softmax(-1)
            return log, log.gather(-1, tokens.flatten(1)[..., None]).squeeze(-1)

    @property
    def stack(self) -> list[nn.Linear]:
        """The layers."""
        return cast("list[nn.Linear]", list(self.layers))

    @property
    def like(self) -> Tensor:
        """A tensor of the network's dtype and device."""
        return self.stack[-1].weight

    def start(self, n: int, **cond: Tensor) -> State:
        """The state before the first token."""
        sizes = [layer.in_features for layer in self.stack]
        blank = tuple(self.like.new_zeros(n, size) for size in sizes)
        nothing = self.like.new_zeros(n)
        return State((), (blank,) * self.config.masks, (nothing,) * self.config.masks, ())

    def next(self, token: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Logits `(N, V)` of the next token in the first order, and the new state."""
        weights = state.weights
        if token is not None:
            state = state._replace(tokens=(*state.tokens, token))
            seen = [log.gather(1, token[:, None]).squeeze(1) for log in state.logs]
            weights = tuple(weight + log for weight, log in zip(weights, seen, strict=True))
        known, parts = [], []
        for kind, values in enumerate(state.known):
            now = self._learn(values, token, kind, len(state.tokens))
            known.append(now)
            parts.append(self._say(now, kind, len(state.tokens)))
        logs = tuple(part.log_softmax(-1) for part in parts)
        state = state._replace(known=tuple(known), weights=weights, logs=logs)
        if len(parts) == 1:
            return parts[0], state
        prior = torch.stack(weights).log_softmax(0)  # (masks, N)
        return (torch.stack(logs) + prior[..., None]).logsumexp(0), state

    def _learn(self, values: tuple[Tensor, ...], token: Tensor | None, kind: int, told: int) -> tuple[Tensor, ...]:
        """Inputs and hidden units `(N, ·)` of each layer after `told` tokens; what is not known yet is zero."""
        inputs, *hidden = values
        degrees = self.degrees(kind)
        if token is not None:
            here = (degrees[0] == told).nonzero().squeeze(1)
            inputs = inputs.index_copy(1, here, self.read(token[:, None], inputs.dtype))
        made = [inputs]
        for i, (layer, h) in enumerate(zip(self.stack[:-1], hidden, strict=True)):
            units = (degrees[i + 1] == told).nonzero().squeeze(1)
            value = F.linear(made[-1], layer.weight[units], layer.bias[units]).relu()
            made.append(h.index_copy(1, units, value))
        return tuple(made)

    def _say(self, values: tuple[Tensor, ...], kind: int, told: int) -> Tensor:
        """Logits `(N, V)` of the token after `told`: all that is not zero may be seen."""
        first = int(self.order[told]) * self.vocab
        block, last = slice(first, first + self.vocab), self.stack[-1]
        made = F.linear(values[-1], last.weight[block], last.bias[block])
        return made if self.direct is None else made + F.linear(values[0], self.direct.weight[block])


class State(NamedTuple):
    """A sampling state: a pytree of tensors with the batch first; a tuple has a member for each set of masks."""

    tokens: tuple[Tensor, ...]  # drawn so far, (N,) each
    known: tuple[tuple[Tensor, ...], ...]  # inputs and hidden units, zero where they are not known yet
    weights: tuple[Tensor, ...]  # (N,) log p of the tokens so far
    logs: tuple[Tensor, ...]  # (N, V) log p of each value of the next token
