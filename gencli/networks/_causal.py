"""What causal networks for images share: convolutions that see earlier pixels only, and their caches for sampling.

Pixels are visited in raster order, their channels one after the other. A masked convolution is the sum of one over the
rows above (`Above`) and one over the pixels to the left and the pixel's own earlier channels (`Left`), so that no product
with a masked weight is computed, and so that sampling can take the first part a row at a time and the second a pixel at
a time. Features are split into as many groups as there are channels; group c knows the channels up to c (after the
first, strictly causal layer: before c).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._conv import ResidualStack
from gencli.nn.embed import LabelEmbedding


def groups(features: int, channels: int) -> Tensor:
    """The group `(features,)` of each feature: equal blocks in the order of the channels."""
    return torch.arange(features) * channels // features


class Above(nn.Module):
    """A convolution over the `kernel // 2` rows above, and with `own` over a pixel's whole row too (vertical stacks)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, own: bool, bias: bool, fan: int) -> None:
        super().__init__()
        self.reach, self.own = kernel // 2, own
        self.conv = nn.Conv2d(inputs, outputs, (self.reach + own, kernel), padding=(0, kernel // 2), bias=bias)
        initialise(self.conv, fan)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, self.reach, 0))
        return self.conv(x if self.own else x[:, :, :-1])

    def row(self, rows: Sequence[Tensor]) -> Tensor:
        """One row `(N, out, W)` from the rows `(N, in, W)` that it sees, the newest last; missing ones are zero."""
        lacking = self.reach + self.own - len(rows)
        seen = torch.stack([*[torch.zeros_like(rows[0])] * lacking, *rows], dim=2)
        return self.conv(seen).squeeze(2)


class Left(nn.Module):
    """A convolution over the `kernel // 2` pixels to the left and the pixel's own earlier channels.

    Args:
        inputs, outputs: features.
        kernel: odd; 1 sees the pixel only.
        first: whether a group sees earlier groups only (mask A); otherwise its own as well (mask B).
        channels: of a pixel.
        gates: the outputs are this many blocks, each with all groups.
        fan: number of values that an output sees, for the initial weights.
    """

    mask: Tensor | None

    def __init__(
        self, inputs: int, outputs: int, kernel: int, first: bool, channels: int, *, gates: int = 1, fan: int = 0
    ) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.here = not (first and channels == 1)  # with one channel, mask A leaves nothing of the pixel itself
        self.conv = nn.Conv2d(inputs, outputs, (1, self.reach + self.here))
        initialise(self.conv, fan or inputs)
        mask = None
        if channels > 1:
            seen, seer = groups(inputs, channels), groups(outputs // gates, channels).repeat(gates)
            mask = torch.ones_like(self.conv.weight)
            mask[:, :, 0, -1] = (seen < seer[:, None]) if first else (seen <= seer[:, None])
        self.register_buffer("mask", mask, persistent=False)

    @property
    def weight(self) -> Tensor:
        """The weights with what may not be seen at zero."""
        return self.conv.weight if self.mask is None else self.conv.weight * self.mask

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (self.reach, 0)) if self.here else F.pad(x, (self.reach, -1))
        return F.conv2d(x, self.weight, self.conv.bias)

    def pixel(self, columns: Sequence[Tensor], current: Tensor) -> Tensor:
        """One pixel `(N, out)` from the columns `(N, in)` before it and its own features; missing ones are zero."""
        seen = list(columns[len(columns) - min(self.reach, len(columns)) :])
        taps = [*[torch.zeros_like(current)] * (self.reach - len(seen)), *seen, *[current] * self.here]
        return F.linear(torch.stack(taps, dim=2).flatten(1), self.weight.flatten(1), self.conv.bias)


def initialise(conv: nn.Conv2d, fan: int) -> None:
    """Uniform weights of variance 1/(3 fan), as torch's default, for a fan-in shared by the parts of one convolution."""
    bound = 1 / math.sqrt(fan)
    nn.init.uniform_(conv.weight, -bound, bound)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class Line(NamedTuple):
    """What one causal layer keeps while sampling: only tuples of tensors, replaced and never written to."""

    rows: tuple[Tensor, ...]  # finished rows of its input, (N, in, W), the newest last
    columns: tuple[Tensor, ...]  # its input in this row so far, (N, in) each
    above: tuple[Tensor, ...]  # what the rows above give to this row, one (N, out) a column

    def push(self, column: Tensor) -> Line:
        """With the next pixel's features."""
        return self._replace(columns=(*self.columns, column))


class State(NamedTuple):
    """A sampling state: a pytree of tensors with the batch first. Cost of a step: one pointer a token and column kept."""

    given: Tensor  # the conditions (N, E), E = 0 without, or (N, E, H, W)
    tokens: tuple[Tensor, ...]  # drawn so far, (N,) each
    lines: tuple[Line, ...]


class Tokens(nn.Module):
    """Whole numbers as features: pixel values in [−1, 1], or a learned vector for each code (codes have no order)."""

    def __init__(self, x: Field, vocab: int, width: int) -> None:
        super().__init__()
        self.vocab = vocab
        self.table = nn.Embedding(vocab, width) if x.kind == "codes" else None
        self.features = width if self.table is not None else 1

    def forward(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """`(N, C, …)` to `(N, C · features, …)`."""
        if self.table is None:
            return tokens.to(dtype) * (2 / max(self.vocab - 1, 1)) - 1
        return self.table(tokens).movedim(-1, 2).flatten(1, 2)


class Conditions(nn.Module):
    """Class labels and vectors as one vector h `(N, width)`; with a grid or an image among them as a map `(N, width, H, W)`.

    Each has a null for its absence; a label may also be `vocab`, which is the null label.

    Args:
        cond: what there is.
        width: of h.
        network: what to call the network.
        grid: the sides (H, W) of x, to which grids of codes and images are brought; None for a network without places.
        blocks: residual blocks over a grid or an image.

    Raises:
        GencliError: a condition is none of these, or its sides do not fit x.
    """

    def __init__(
        self,
        cond: Mapping[str, Field],
        width: int,
        network: str,
        grid: tuple[int, int] | None = None,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        parts: dict[str, nn.Module] = {}
        maps = "" if grid is None else ", grids of codes, images"
        for key, field in cond.items():
            if field.vocab is not None and field.shape == ():
                parts[key] = LabelEmbedding(field, width, 1.0)
            elif field.vocab is None and len(field.shape) == 1:
                parts[key] = nn.Linear(field.size + 1, width, bias=False)
            elif grid is not None and is_map(field):
                parts[key] = Map(field, width, grid, blocks, f"network {network} cannot take the condition '{key}'")
            else:
                raise GencliError(
                    f"network {network} cannot take the condition '{key}' ({field.kind} of shape {field.shape})",
                    f"{network} takes class labels{maps} and vectors; leave '{key}' out of the data",
                )
        self.parts = nn.ModuleDict(parts)
        self.width = width if parts else 0

    def forward(self, n: int, cond: Mapping[str, Tensor], like: Tensor) -> Tensor:
        h = self._vector(n, cond, like)
        for key, module in self.parts.items():
            if isinstance(module, Map):
                made = module(n, cond.get(key), like)
                h = h + made if h.ndim == made.ndim else h[:, :, None, None] + made
        return h

    def _vector(self, n: int, cond: Mapping[str, Tensor], like: Tensor) -> Tensor:
        h = like.new_zeros(n, self.width)
        for key, module in self.parts.items():
            value = cond.get(key)
            if isinstance(module, LabelEmbedding):
                null = torch.full((n,), module.num_embeddings - 1, device=like.device)
                h = h + module(null if value is None else value)
            elif isinstance(module, nn.Linear):
                present = like.new_zeros(n, module.in_features)
                if value is not None:
                    present = torch.cat([value.to(like), like.new_ones(n, 1)], dim=1)
                h = h + module(present)
        return h


def is_map(field: Field) -> bool:
    """A grid of codes `(h, w)`, or an image `(C, h, w)` of whole numbers or of floats."""
    return len(field.shape) == 3 or (len(field.shape) == 2 and field.vocab is not None and field.range is None)


class Map(nn.Module):
    """A grid of codes or an image as features `(N, width, H, W)`, for a condition that says something at every place.

    A learned vector for each code (a last one for their absence), or an image's channels beside a constant one; brought to
    the sides of x, larger ones by a strided convolution over whole patches, smaller ones by repeating each place; then a
    residual stack. Raises GencliError, beginning with `refusal`, for sides that are not whole multiples.
    """

    def __init__(self, field: Field, width: int, grid: tuple[int, int], blocks: int, refusal: str) -> None:
        super().__init__()
        self.vocab, self.shape = field.vocab, field.shape
        self.continuous = field.range is not None or field.vocab is None
        (high, wide), (rows, columns) = field.shape[-2:], grid
        self.times, step = max(rows // high, 1), max(high // rows, 1)
        if (high * self.times, wide * self.times) != (rows * step, columns * step):
            raise GencliError(
                f"{refusal}: its sides {high}×{wide} are no multiple or part of those of x, {rows}×{columns}",
                "choose sizes of which one is a whole multiple of the other",
            )
        self.table = nn.Embedding(field.vocab + 1, width) if field.vocab and len(field.shape) == 2 else None
        inputs = width if self.table is not None else field.shape[0] + 1
        self.read = nn.Conv2d(inputs, width, step, stride=step) if step > 1 or self.table is None else nn.Identity()
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), ResidualStack(width, width, blocks))

    def forward(self, n: int, value: Tensor | None, like: Tensor) -> Tensor:
        h: Tensor = self.read(self._seen(n, value, like))
        return self.body(h.repeat_interleave(self.times, 2).repeat_interleave(self.times, 3))

    def _seen(self, n: int, value: Tensor | None, like: Tensor) -> Tensor:
        """The condition before it is resized: `(N, inputs, h, w)`."""
        if self.table is not None:
            codes = torch.full((n, *self.shape), self.vocab or 0, device=like.device) if value is None else value
            return self.table(codes).movedim(-1, 1)
        if value is None:
            return like.new_zeros(n, self.shape[0] + 1, *self.shape[1:])
        scaled = value.to(like) if self.continuous else value.to(like) * (2 / max((self.vocab or 0) - 1, 1)) - 1
        return torch.cat([scaled, torch.ones_like(scaled[:, :1])], dim=1)


def told(project: nn.Linear, h: Tensor, x: Tensor) -> Tensor:
    """A projection of conditions `(N, E)`, or `(N, E, *places)`, to be added to features x `(N, width, *places)`."""
    made: Tensor = project(h.movedim(1, -1)).movedim(-1, 1)
    return made.view(*made.shape, *[1] * (x.ndim - made.ndim)) if made.ndim < x.ndim else made


class Masked(nn.Module):
    """A masked convolution: what is above, and what is left."""

    def __init__(self, inputs: int, outputs: int, kernel: int, first: bool, channels: int) -> None:
        super().__init__()
        fan = inputs * (kernel // 2 * (kernel + 1) + (not first))
        self.outputs = outputs
        self.above = Above(inputs, outputs, kernel, own=False, bias=False, fan=fan)
        self.left = Left(inputs, outputs, kernel, first, channels, fan=fan)

    def forward(self, x: Tensor) -> Tensor:
        return self.above(x) + self.left(x)

    def begin_row(self, line: Line) -> Line:
        """The line at the start of a row, the one before being complete."""
        rows = (*line.rows, torch.stack(line.columns, dim=2))[-self.above.reach :]
        return Line(rows, (), self.above.row(rows).unbind(2))

    def pixel(self, line: Line, x: Tensor, column: int) -> Tensor:
        """What it makes of a pixel of known channels."""
        return line.above[column] + self.left.pixel(line.columns, x)


class CausalImageNet(nn.Module, ABC):
    """Tokens in, logits out, over images `(C, H, W)` or grids `(h, w)`; a subclass gives the features in between.

    A subclass sets `read`, `head` and the layers, and implements `features`, `begin_row` and `pixel`.
    """

    read: Tokens
    head: nn.Sequential

    def __init__(self, x: Field, vocab: int, network: str) -> None:
        super().__init__()
        if len(x.shape) not in (2, 3):
            raise GencliError(
                f"network {network} works on images and grids of codes, got {x.kind} of shape {x.shape}",
                "choose image data",
            )
        self.flat = len(x.shape) == 2
        self.channels, self.height, self.breadth = (1, *x.shape) if self.flat else x.shape
        self.vocab = vocab
        self.stride = 1

    def make_head(self, width: int, hidden: int) -> nn.Sequential:
        """Two 1×1 convolutions with relus before them, to the logits of every channel."""
        out = _Logits(hidden, self.channels, self.vocab)
        return nn.Sequential(nn.ReLU(), Left(width, hidden, 1, False, self.channels), nn.ReLU(), out)

    @abstractmethod
    def features(self, x: Tensor, h: Tensor) -> Tensor:
        """`(N, width, H, W)` from the tokens' features `(N, C f, H, W)` and the conditions' `(N, E)` or `(N, E, H, W)`."""

    @abstractmethod
    def begin_row(self, lines: tuple[Line, ...], h: Tensor) -> tuple[Line, ...]:
        """The lines at the start of a row, the one before being complete; h is `(N, E)`, or the row's `(N, E, W)`."""

    @abstractmethod
    def pixel(self, lines: tuple[Line, ...], x: Tensor, column: int) -> tuple[Tensor, list[Tensor]]:
        """Features `(N, width)` of a pixel of known channels `x` `(N, C f)`, and the inputs of the lines after the first."""

    def given(self, n: int, cond: Mapping[str, Tensor], like: Tensor) -> Tensor:
        """The conditions as one vector `(N, E)` (E = 0 for a network that takes none), or as a map `(N, E, H, W)`."""
        return like.new_zeros(n, 0)

    @property
    def like(self) -> Tensor:
        """A tensor of the network's dtype and device."""
        return next(p for p in self.head.parameters())

    def forward(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        """Logits `(N, *x.shape, V)` of tokens `(N, *x.shape)`, each from earlier tokens only."""
        grid = tokens[:, None] if self.flat else tokens
        x = self.read(grid, self.like.dtype)
        made = self.head(self.features(x, self.given(len(tokens), cond, self.like)))
        logits = made.unflatten(1, (self.channels, self.vocab)).movedim(2, -1)  # (N, C, H, W, V)
        return logits[:, 0] if self.flat else logits

    def start(self, n: int, **cond: Tensor) -> State:
        """The state before the first token."""
        return State(self.given(n, cond, self.like), (), ())

    def next(self, token: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Logits `(N, V)` of the next token in the order row, column, channel, and the new state."""
        if token is not None:
            state = self._take(token, state)
        place, channel = divmod(len(state.tokens), self.channels)
        column = place % self.breadth
        lines = state.lines
        if column == 0 and channel == 0:
            whole = state.given
            lines = self.begin_row(lines, whole[:, :, place // self.breadth] if whole.ndim == 4 else whole)
        known = state.tokens[len(state.tokens) - channel :]
        features, inputs = self.pixel(lines, self._pixel_input(known, state.given), column)
        if channel == self.channels - 1:  # nothing of this pixel depends on its last channel: the features are final
            lines = (lines[0], *(line.push(value) for line, value in zip(lines[1:], inputs, strict=True)))
        return self._logits(features, channel), state._replace(lines=lines)

    def _take(self, token: Tensor, state: State) -> State:
        tokens = (*state.tokens, token)
        lines = state.lines
        if len(tokens) % self.channels == 0:
            whole = self._pixel_input(tokens[len(tokens) - self.channels :], state.given)
            lines = (lines[0].push(whole), *lines[1:])
        return State(state.given, tokens, lines)

    def _pixel_input(self, known: Sequence[Tensor], like: Tensor) -> Tensor:
        """Features `(N, C f)` of a pixel of which the first channels are known, the others zero."""
        zeros = like.new_zeros(len(like), self.channels * self.read.features)
        if not known:
            return zeros
        made = self.read(torch.stack(tuple(known), dim=1), zeros.dtype)
        return torch.cat([made, zeros[:, made.shape[1] :]], dim=1)

    def _logits(self, features: Tensor, channel: int) -> Tensor:
        _, inner, _, last = self.head
        assert isinstance(inner, Left)
        assert isinstance(last, _Logits)
        return last.of(inner.pixel((), features.relu()).relu(), channel)


class _Logits(Left):
    """The last 1×1 convolution: the logits of channel c from the groups up to c."""

    def __init__(self, width: int, channels: int, vocab: int) -> None:
        super().__init__(width, channels * vocab, 1, False, channels)
        self.vocab = vocab

    def of(self, features: Tensor, channel: int) -> Tensor:
        """`(N, V)` of one channel."""
        block = slice(channel * self.vocab, (channel + 1) * self.vocab)
        bias = self.conv.bias
        assert bias is not None
        return F.linear(features, self.weight[block].flatten(1), bias[block])
