"""PixelCNN++: the network (Salimans et al., 2017). arXiv:1701.05517

Offers: sequence

    c = conv(f(x)) + W f(a),   x ← x + c₁ σ(c₂) of conv(dropout(f(c))) + V h,   f(x) = elu([x, −x])

A vertical stream of 2×3 convolutions sees the rows above; a horizontal one of 2×2 convolutions also what is to the left, a
being the vertical stream. On the way down the image is halved by convolutions of stride 2, on the way up doubled, with
short-cuts (a again) between layers of the same resolution. Filters are weight-normalised, and set from data by `settle`.
Images have one set of numbers a pixel, of a discretised logistic mixture (`nn/logistic_mixture.py`), from which the logits of
every channel follow; the paper's for CIFAR-10 is 3 levels × 5 blocks × 160 with 10 mixtures. h is the class, one-hot as in
the official code; the null class is zero.

Ours: codes, which have no order, are read as learned vectors and have a softmax; images of any size; vectors as conditions.

Tokens `(N, *x.shape)` with x `(C, H, W)` pixels or `(h, w)` codes; logits `(N, *x.shape, V)`. Raises GencliError for other
data, and for conditions that are neither labels nor vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli import core
from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._causal import Tokens
from gencli.networks._shifted import Cell, Grown, Shifted, both_signs, gate, settling
from gencli.nn.logistic_mixture import LogisticMixture, numbers


class PixelCNNPP(nn.Module, Component):
    """Two streams, down and up again."""

    role: ClassVar[str] = "sequence"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(64, "feature maps of each stream", low=1)
        blocks: int = opt(2, "residual blocks of each level on the way down, and one more on the way up", low=1)
        levels: int = opt(3, "resolutions, each half of the one before", low=1, high=6)
        mixtures: int = opt(10, "components of the mixture of logistic distributions", low=1)
        dropout: float = opt(0.5, "share of a block's features dropped in training", low=0, high=0.9)

    def __init__(self, config: Config, x: Field, vocab: int, cond: Mapping[str, Field] | None = None) -> None:
        super().__init__()
        if len(x.shape) not in (2, 3):
            raise GencliError(
                f"network pixelcnnpp works on images and grids of codes, got {x.kind} of shape {x.shape}",
                "choose image data",
            )
        self.config, self.vocab, self.taken = config, vocab, dict(cond or {})
        self.flat, self.ordered = len(x.shape) == 2, x.kind != "codes"
        self.channels, self.height, self.breadth = (1, *x.shape) if self.flat else x.shape
        width, given = config.width, sum(_given_size(key, field) for key, field in self.taken.items())
        self.read = Tokens(x, vocab, width)
        self.entry = _Entry(self.channels * self.read.features + 1, width)
        self.body = _Level(config, config.levels, given)
        outs = numbers(self.channels) * config.mixtures if self.ordered else self.channels * vocab
        self.head = Shifted(width, outs, (1, 1), True)

    def forward(self, tokens: Tensor, *, raw: bool = False, **cond: Tensor) -> Tensor:
        """Logits `(N, *x.shape, V)` of tokens `(N, *x.shape)`, each from earlier tokens only.

        `raw` is for `log_prob`: what the last layer says `(N, H, W, …)`, the same for all channels of a pixel.
        """
        grid = tokens[:, None] if self.flat else tokens
        x = F.pad(self.read(grid, self.like.dtype), (0, 0, 0, 0, 0, 1), value=1.0)  # the ones tell where the image ends
        _, made = self.body(*self.entry(x), self.given(len(tokens), cond))
        said = self.head(F.elu(made)).movedim(1, -1)
        if raw:
            return said
        pixels = grid.movedim(1, -1)
        with core.full_precision(said.device):
            logits = torch.stack([self.logits(said, pixels[..., :c]) for c in range(self.channels)], dim=1)
        return logits[:, 0] if self.flat else logits

    def logits(self, said: Tensor, earlier: Tensor) -> Tensor:
        """Of the next channel `(…, V)`, from the last layer's numbers `(…, M)` and the pixel's channels so far `(…, c)`."""
        if self.ordered:
            return LogisticMixture.of(said, self.channels, self.vocab).logits(earlier)
        return said.unflatten(-1, (self.channels, self.vocab))[..., earlier.shape[-1], :]

    def log_prob(self, said: Tensor, tokens: Tensor) -> Tensor:
        """log p `(N,)` of tokens `(N, *x.shape)`, from the last layer's numbers: no logits of all values are made."""
        pixels = (tokens[:, None] if self.flat else tokens).movedim(1, -1)  # (N, H, W, C)
        with core.full_precision(said.device):
            if self.ordered:
                return LogisticMixture.of(said, self.channels, self.vocab).log_prob(pixels).sum((1, 2))
            wide = said if said.dtype == torch.float64 else said.float()
            logits = wide.unflatten(-1, (self.channels, self.vocab)).flatten(0, -2)
            return -F.cross_entropy(logits, pixels.flatten(), reduction="none").view(len(tokens), -1).sum(1)

    @torch.no_grad()
    def settle(self, tokens: Tensor, **cond: Tensor) -> None:
        """Set the lengths and biases of all filters from a batch: every channel gets mean 0 and spread 1 (or 0.1)."""
        was, _ = self.training, self.eval()
        with settling(self):
            self(tokens, raw=True, **cond)
        self.train(was)

    @property
    def like(self) -> Tensor:
        """A tensor of the network's dtype and device."""
        return self.head.bias

    def given(self, n: int, cond: Mapping[str, Tensor]) -> Tensor:
        """The conditions side by side `(N, E)`; labels one-hot; zeros for what is absent."""
        parts = [self.like.new_zeros(n, 0)]
        for key, field in self.taken.items():
            value = cond.get(key)
            if value is None:
                parts.append(self.like.new_zeros(n, _given_size(key, field)))
            elif field.vocab is not None:
                parts.append(F.one_hot(value, field.vocab + 1)[:, :-1].to(self.like))
            else:
                parts.append(F.pad(value.to(self.like), (0, 1), value=1.0))
        return torch.cat(parts, dim=1)

    def start(self, n: int, **cond: Tensor) -> State:
        """The state before the first token."""
        given = self.given(n, cond)
        return State(given, (), (), (), given.new_zeros(n, 0))

    def next(self, token: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Logits `(N, V)` of the next token in the order row, column, channel, and the new state."""
        if token is not None:
            state = state._replace(tokens=(*state.tokens, token))
        place, channel = divmod(len(state.tokens), self.channels)
        if channel == 0:  # a pixel's numbers are those of all its channels
            state = self._pixel(state, *divmod(place, self.breadth))
        known = state.tokens[len(state.tokens) - channel :]
        earlier = torch.stack(known, dim=1) if known else torch.zeros_like(state.said[:, :0], dtype=torch.long)
        return self.logits(state.said, earlier), state

    def _pixel(self, state: State, row: int, column: int) -> State:
        h, entry, body = state.given, state.entry, state.body
        if state.tokens:
            last = torch.stack(state.tokens[-self.channels :], dim=1)
            entry = entry._replace(columns=(*entry.columns, F.pad(self.read(last, h.dtype), (0, 1), value=1.0)))
        if column == 0:
            tall, entry = self.entry.begin_row(entry, h, self.breadth)
            _, body = self.body.begin_row(tall, row, h, body)
        made, body = self.body.pixel(self.entry.pixel(entry, column), row, column, body)
        said = self.head.point(F.elu(made), self.head.scale) + self.head.bias
        return state._replace(entry=entry, body=body, said=said)


class State(NamedTuple):
    """A sampling state: a pytree of tensors with the batch first, `()` where there is nothing yet."""

    given: Tensor  # (N, E) the conditions
    tokens: tuple[Tensor, ...]  # drawn so far, (N,) each
    entry: Any
    body: Any
    said: Tensor  # (N, M) the last layer's numbers at this pixel


def _given_size(key: str, field: Field) -> int:
    if field.vocab is not None and field.shape == ():
        return field.vocab
    if field.vocab is None and len(field.shape) == 1:
        return field.size + 1  # a one says that it is there
    raise GencliError(
        f"network pixelcnnpp cannot take the condition '{key}' ({field.kind} of shape {field.shape})",
        f"pixelcnnpp takes class labels and vectors; leave '{key}' out of the data",
    )


class _EntryState(NamedTuple):
    rows: tuple[Tensor, ...]  # the last two finished rows of the image, (N, in, W)
    columns: tuple[Tensor, ...]  # this row so far, (N, in) each
    above: tuple[Tensor, ...]  # what the rows above give to the horizontal stream, (N, width) a column


class _Entry(nn.Module):
    """The first layer of both streams, shifted so that a pixel does not see itself."""

    def __init__(self, ins: int, width: int) -> None:
        super().__init__()
        self.vertical = Shifted(ins, width, (2, 3), False)
        self.over = Shifted(ins, width, (1, 3), False)
        self.left = Shifted(ins, width, (2, 1), True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        down, right = (0, 0, 1, -1), (1, -1)
        return F.pad(self.vertical(x), down), F.pad(self.over(x), down) + F.pad(self.left(x), right)

    def begin_row(self, before: Any, h: Tensor, breadth: int) -> tuple[Tensor, _EntryState]:
        """The vertical stream's row `(N, width, W)`, and the new state."""
        finished = (*before.rows, torch.stack(before.columns, dim=2)) if before else ()
        width, ins = self.over.direction.shape[0], self.over.direction.shape[-1]
        blank = h.new_zeros(len(h), ins, breadth)
        rows = (blank, blank, *finished)[-2:]
        tall = over = h.new_zeros(len(h), width, breadth)
        if finished:
            tall, over = self.vertical.rows(torch.stack(rows, dim=2)), self.over.rows(rows[1][:, :, None])
        above = over + F.pad(self.left.above(rows[1]), (1, -1))
        return tall, _EntryState(finished[-2:], (), above.unbind(2))

    def pixel(self, state: _EntryState, column: int) -> Tensor:
        """The horizontal stream at a pixel `(N, width)`."""
        above = state.above[column]
        return above + self.left.point(state.columns[-1], self.left.scale) if column else above


class _Gated(nn.Module):
    """A gated residual block of one stream, with `beside` features from elsewhere."""

    def __init__(self, config: PixelCNNPP.Config, left: bool, beside: int, given: int) -> None:
        super().__init__()
        width, kernel = config.width, (2, 2 if left else 3)
        self.first = Shifted(2 * width, width, kernel, left)
        self.link = Shifted(2 * beside, width, (1, 1), True) if beside else None
        self.drop = nn.Dropout(config.dropout)
        self.second = Shifted(2 * width, 2 * width, kernel, left, size=0.1)
        self.given = nn.Linear(given, 2 * width, bias=False) if given else None

    def forward(self, x: Tensor, beside: Tensor | None, h: Tensor) -> Tensor:
        made = self.first(both_signs(x))
        if self.link is not None:
            made = made + self.link(both_signs(cast(Tensor, beside)))
        made = self.second(self.drop(both_signs(made)))
        if self.given is not None:
            made = made + self.given(h)[:, :, None, None]
        return x + gate(made)

    def row(self, x: Tensor, beside: Tensor | None, h: Tensor, before: tuple[Tensor, ...]) -> tuple[Tensor, Any]:
        """A row `(N, width, W)` of the vertical stream, and the inputs of both convolutions, for the next row."""
        fed = both_signs(x)
        last, last_inner = before or (torch.zeros_like(fed), torch.zeros_like(fed))
        made = self.first.rows(torch.stack([last, fed], dim=2))
        if self.link is not None:
            made = made + self.link(both_signs(cast(Tensor, beside))[:, :, None]).squeeze(2)
        inner = both_signs(made)
        made = self.second.rows(torch.stack([last_inner, inner], dim=2))
        if self.given is not None:
            made = made + self.given(h)[:, :, None]
        return x + gate(made), (fed, inner)


class _LayerState(NamedTuple):
    rows: tuple[Tensor, ...]  # the vertical convolutions' last inputs, (N, in, W)
    tall: tuple[Tensor, ...]  # the vertical stream in this row, (N, width) a column
    first: Cell
    second: Cell
    link: Tensor  # (N, width), the scale of the link


class _Layer(nn.Module):
    """A block of each stream; on the way up each has its short-cut beside it."""

    def __init__(self, config: PixelCNNPP.Config, short_cut: bool, given: int) -> None:
        super().__init__()
        width = config.width
        self.vertical = _Gated(config, False, width * short_cut, given)
        self.horizontal = _Gated(config, True, width * (1 + short_cut), given)

    def forward(self, tall: Tensor, x: Tensor, cut: tuple[Tensor, Tensor] | None, h: Tensor) -> tuple[Tensor, Tensor]:
        tall = self.vertical(tall, cut[0] if cut else None, h)
        return tall, self.horizontal(x, torch.cat([tall, cut[1]], dim=1) if cut else tall, h)

    def begin_row(self, tall: Tensor, cut: Tensor | None, h: Tensor, before: Any) -> tuple[Tensor, _LayerState]:
        """The vertical stream's row, and what the horizontal one needs in this row."""
        side = self.horizontal
        link = cast(Shifted, side.link)
        tall, rows = self.vertical.row(tall, cut, h, before.rows if before else ())
        first = Cell.begin(side.first, before.first if before else None, tall).plus(link.bias)
        second = Cell.begin(side.second, before.second if before else None, tall)
        if side.given is not None:
            second = second.plus(side.given(h))
        return tall, _LayerState(rows, tall.unbind(2), first, second, link.scale.expand(len(tall), -1))

    def pixel(self, x: Tensor, cut: Tensor | None, column: int, state: _LayerState) -> tuple[Tensor, _LayerState]:
        """The horizontal stream at a pixel `(N, width)`."""
        side, tall = self.horizontal, state.tall[column]
        beside = tall if cut is None else torch.cat([tall, cut], dim=1)
        fed = both_signs(x)
        made = state.first.step(side.first, fed, column)
        inner = both_signs(made + cast(Shifted, side.link).point(both_signs(beside), state.link))
        out = x + gate(state.second.step(side.second, inner, column))
        return out, state._replace(first=state.first.push(fed), second=state.second.push(inner))


class _LevelState(NamedTuple):
    layers: tuple[_LayerState, ...]
    deeper: Any


class _Level(nn.Module):
    """Both streams at one resolution, down, and up again after the coarser ones."""

    def __init__(self, config: PixelCNNPP.Config, levels: int, given: int) -> None:
        super().__init__()
        self.down = nn.ModuleList(_Layer(config, False, given) for _ in range(config.blocks))
        self.deeper = _Deeper(config, levels - 1, given) if levels > 1 else None
        self.up = nn.ModuleList(_Layer(config, True, given) for _ in range(config.blocks + (levels > 1)))

    def forward(self, tall: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        cuts = [(tall, x)]
        for layer in self.down:
            tall, x = layer(tall, x, None, h)
            cuts.append((tall, x))
        tall, x = self.deeper(tall, x, h) if self.deeper is not None else cuts.pop()
        for layer in self.up:
            tall, x = layer(tall, x, cuts.pop(), h)
        return tall, x

    def begin_row(self, tall: Tensor, row: int, h: Tensor, before: Any) -> tuple[Tensor, _LevelState]:
        """The vertical stream's row `(N, width, W)`, and the new state."""
        layers, cuts, made = cast("list[_Layer]", [*self.down, *self.up]), [tall], []
        kept = iter(before.layers if before else [()] * len(layers))
        for layer in layers[: len(self.down)]:
            tall, state = layer.begin_row(tall, None, h, next(kept))
            made.append(state)
            cuts.append(tall)
        deeper: Any = ()
        if self.deeper is not None:
            tall, deeper = self.deeper.begin_row(tall, row, h, before.deeper if before else ())
        else:
            cuts.pop()
        for layer in layers[len(self.down) :]:
            tall, state = layer.begin_row(tall, cuts.pop(), h, next(kept))
            made.append(state)
        return tall, _LevelState(tuple(made), deeper)

    def pixel(self, x: Tensor, row: int, column: int, state: _LevelState) -> tuple[Tensor, _LevelState]:
        """The horizontal stream at a pixel `(N, width)`, and the new state."""
        layers, cuts, made = cast("list[_Layer]", [*self.down, *self.up]), [x], []
        kept, deeper = iter(state.layers), state.deeper
        for layer in layers[: len(self.down)]:
            x, one = layer.pixel(x, None, column, next(kept))
            made.append(one)
            cuts.append(x)
        if self.deeper is not None:
            x, deeper = self.deeper.pixel(x, row, column, deeper)
        else:
            cuts.pop()
        for layer in layers[len(self.down) :]:
            x, one = layer.pixel(x, cuts.pop(), column, next(kept))
            made.append(one)
        return x, _LevelState(tuple(made), deeper)


class _DeeperState(NamedTuple):
    last: Tensor  # (N, width, W) the vertical stream's newest row before it is halved
    cell: Cell
    level: _LevelState
    tall: Tensor  # (N, width, W / 2) the vertical stream's coarse row
    made: tuple[Tensor, ...]  # the horizontal stream's coarse row so far, (N, width) a column


class _Deeper(nn.Module):
    """The next level and the way to it and back."""

    def __init__(self, config: PixelCNNPP.Config, levels: int, given: int) -> None:
        super().__init__()
        width = config.width
        self.shrink_vertical = Shifted(width, width, (2, 3), False, stride=2)
        self.shrink_horizontal = Shifted(width, width, (2, 2), True, stride=2)
        self.level = _Level(config, levels, given)
        self.grow_vertical = Grown(width, width, (2, 3), False)
        self.grow_horizontal = Grown(width, width, (2, 2), True)

    def forward(self, tall: Tensor, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        low_tall, low = self.level(self.shrink_vertical(tall), self.shrink_horizontal(x), h)
        return self.grow_vertical(low_tall, tall), self.grow_horizontal(low, x)

    def begin_row(self, tall: Tensor, row: int, h: Tensor, before: Any) -> tuple[Tensor, _DeeperState]:
        """The vertical stream's row `(N, width, W)`; the coarser levels have a new one at every second row."""
        cell = Cell.begin(self.shrink_horizontal, before.cell if before else None, tall)
        if row % 2 == 0:
            last = before.last if before else torch.zeros_like(tall)
            halved = self.shrink_vertical.rows(torch.stack([last, tall], dim=2))
            low, level = self.level.begin_row(halved, row // 2, h, before.level if before else ())
            state = _DeeperState(tall, cell, level, low, ())
        else:
            state = before._replace(last=tall, cell=cell)
        return self.grow_vertical.row(state.tall, row % 2, tall.shape[-1]), state

    def pixel(self, x: Tensor, row: int, column: int, state: _DeeperState) -> tuple[Tensor, _DeeperState]:
        """The horizontal stream at a pixel `(N, width)`; the coarser levels have a new one at every fourth."""
        level, made = state.level, state.made
        if row % 2 == 0 and column % 2 == 0:
            halved = state.cell.step(self.shrink_horizontal, x, column // 2)
            low, level = self.level.pixel(halved, row // 2, column // 2, level)
            made = (*made, low)
        state = state._replace(cell=state.cell.push(x), level=level, made=made)
        return self.grow_horizontal.point(made[column // 2], row % 2, column % 2), state
