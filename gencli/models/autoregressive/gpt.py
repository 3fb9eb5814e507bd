"""Taming Transformers for High-Resolution Image Synthesis: the prior (Esser, Rombach & Ommer, 2020). arXiv:2012.09841

Offers: sample, exact density

    p(s | c) = Π_i p(s_i | s_<i, c)

A GPT-2 decoder over the codes of an autoencoder in raster order, or over pixels; the class is the first token of the
sequence (`gencli/networks/transformer.py`), its null row stands for none. Ours: labels are dropped with the probability
`label_dropout`, so that one model serves with and without a class, and with guidance.

With a `window` the model only ever sees squares of that side, as in the paper for images larger than it could train on:
training takes one square at a random place of each item, and a token is told from the square that has it in the middle,
or as near to the middle as the borders allow. Its density is then the product over these squares, exact as any other,
and costs a pass of the network for every square.

x is `(h, w)` codes or `(C, H, W)` pixels, whole numbers in 0 … V−1. `attention` shows what looks at what.

Raises GencliError for continuous data, a window larger than the data, and a network that reads a window in another order.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Field, Losses, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.autoregressive._family import ImageAutoregressiveModel, Prefix
from gencli.networks.transformer import Transformer


class GPT(ImageAutoregressiveModel):
    """A transformer, a class, and a softmax."""

    _inner: Tensor  # the order within what the network sees

    @dataclass(frozen=True)
    class Config:
        label_dropout: float = opt(0.1, "share of items trained without their label", low=0, high=1)
        window: int = opt(0, "side of the square that is seen, for larger images; 0 = everything", low=0)
        net: Part = part("networks", "transformer", "causal network", role="sequence")

    def __init__(self, config: Any, spec: Spec) -> None:
        self.window = getattr(config, "window", 0)
        super().__init__(config, dataclasses.replace(spec, x=_square(spec.x, self.window)))
        self.seen = self.spec.x
        self.register_buffer("_inner", self._order, persistent=False)
        if self.window:
            if self.net.config.mask == "local-2d" if isinstance(self.net, Transformer) else hasattr(self.net, "order"):
                raise GencliError(
                    f"gpt: a window of {self.window} is read in raster order, network {config.net.name} has its own",
                    "leave --window out, or choose another --net.mask",
                )
            self.spec = dataclasses.replace(self.spec, x=spec.x)
            self.register_buffer("_order", _raster(spec.x.shape), persistent=False)

    def logits(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        known = self.known(cond)
        if not self.window:
            return self._within(tokens, known)
        grid = self._grid(tokens)
        made = [torch.empty(0)] * tokens.shape[1]
        for (top, left), places in self._squares().items():
            inside = self._within(self._cut(grid, top, left), known)
            for place, local in places:
                made[place] = inside[:, local]
        return torch.stack(made, dim=1)

    def start(self, n: int, **cond: Tensor) -> Any:
        if not self.window:
            return super().start(n, **cond)
        return Prefix(torch.zeros(n, 0, dtype=torch.long, device=self.device), self.known(cond))

    def next(self, token: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        if not self.window:
            return super().next(token, state)
        tokens = state.tokens if token is None else torch.cat([state.tokens, token[:, None]], dim=1)
        here = tokens.shape[1]
        top, left, local = self._where(here)
        grid = self._grid(F.pad(tokens, (0, len(self.order) - here)))
        square = self._cut(grid, top, left)[:, : local + 1]  # the last one is not looked at
        return self._within(square, state.cond)[:, local], Prefix(tokens, state.cond)

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        if not (self.window and self.training):
            return super().loss(batch, turn)
        losses = super().loss({**batch, "x": self._crop(batch["x"], turn.rng.at("window"))}, turn)
        return {**losses, "bits_per_dim": losses["bits_per_dim"] * (self.spec.x.size / self.seen.size)}

    def _log_prob(self, x: Tensor, cond: Batch) -> Tensor:
        if not self.window and hasattr(self.net, "log_prob"):
            return super()._log_prob(x, cond)
        if x.shape[1:] == self.seen.shape:
            tokens = x.flatten(1)[:, self._inner]
            logits = self._within(tokens, cond)
        else:
            tokens = x.flatten(1)[:, self.order]
            logits = self.logits(tokens, **cond)
        with core.full_precision(x.device):
            wide = logits if logits.dtype == torch.float64 else logits.float()
            each = F.cross_entropy(wide.flatten(0, 1), tokens.flatten(), reduction="none")
            return -each.view(len(x), -1).sum(1)

    def attention(self, x: Tensor, **cond: Tensor) -> Tensor:
        """How much each token takes from each, `(N, depth, heads, L, L)`: row i tells token i, column 0 is the class."""
        return self.transformer("show its attention").attention(x, **self.known(cond))

    def transformer(self, purpose: str) -> Transformer:
        """The network, if it is one that can do more than tell tokens."""
        if not isinstance(self.net, Transformer):
            raise GencliError(
                f"{self.public_name()} with network {self.config.net.name} cannot {purpose}",
                "train it with --net transformer",
            )
        return self.net

    def _within(self, tokens: Tensor, cond: Batch) -> Tensor:
        """Logits `(N, T, V)` of the first T tokens of what the network sees."""
        if isinstance(self.net, Transformer):
            return self.net(tokens, ordered=True, **cond)
        flat = tokens.new_zeros(len(tokens), self.seen.size)
        flat[:, self._inner[: tokens.shape[1]]] = tokens
        made = self.net(flat.view(len(tokens), *self.seen.shape), **cond).flatten(1, -2)
        return made[:, self._inner[: tokens.shape[1]]]

    # --------------------------------------------------------------------------------------------------------------- squares

    def _grid(self, tokens: Tensor) -> Tensor:
        """`(N, H, W, C)` from tokens in raster order."""
        shape = self.spec.x.shape
        return tokens.view(len(tokens), *shape[-2:], -1)

    def _cut(self, grid: Tensor, top: int, left: int) -> Tensor:
        return grid[:, top : top + self.window, left : left + self.window].flatten(1)

    def _where(self, i: int) -> tuple[int, int, int]:
        """The square's corner for token i, and which of its tokens that is."""
        high, wide = self.spec.x.shape[-2:]
        channels, side = self.spec.x.size // (high * wide), self.window
        place, channel = divmod(i, channels)
        row, column = divmod(place, wide)
        top, left = (min(max(at - side // 2, 0), most - side) for at, most in ((row, high), (column, wide)))
        return top, left, ((row - top) * side + column - left) * channels + channel

    def _squares(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """For each square, the tokens told from it, with their places in it."""
        made: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for i in range(self.spec.x.size):
            top, left, local = self._where(i)
            made.setdefault((top, left), []).append((i, local))
        return made

    def _crop(self, x: Tensor, rng: Rng) -> Tensor:
        """Each item's square at a random place."""
        shape, side = self.spec.x.shape, self.window
        grid = x.view(len(x), -1, *shape[-2:])
        room = torch.tensor([most - side + 1 for most in shape[-2:]], device=x.device)
        corner = (rng.uniform((len(x), 2)).to(x.device) * room).long()
        along = torch.arange(side, device=x.device)
        rows, columns = (corner[:, i, None] + along for i in (0, 1))
        item = torch.arange(len(x), device=x.device)[:, None, None]
        cut = grid[item, :, rows[:, :, None], columns[:, None]]  # (N, side, side, C)
        return cut.movedim(-1, 1).reshape(len(x), *self.seen.shape)


def _square(x: Field, side: int) -> Field:
    if not side:
        return x
    if side > min(x.shape[-2:]):
        raise GencliError(
            f"gpt: a window of {side} does not fit into {x.kind} of shape {x.shape}", "give a smaller --window"
        )
    return dataclasses.replace(x, shape=(*x.shape[:-2], side, side))


def _raster(shape: tuple[int, ...]) -> Tensor:
    places = torch.arange(torch.Size(shape).numel()).view(shape)
    return (places.movedim(0, -1) if len(shape) == 3 else places).flatten()
