"""Attention Is All You Need: the decoder, as in GPT-2 (Vaswani et al., 2017). arXiv:1706.03762

Offers: sequence

    h_0 = [c, e(x_1), …, e(x_{L−1})] + positions,   h ← h + Attention(norm(h)),   h ← h + W_2 φ(W_1 norm(h)),
    logits_i = W norm(h_i)        (the order of norms and the initial weights of Radford et al., 2019)

Token i is told from position i, which has read the prefix c and the tokens before i. c is the sum of a learned vector for
each condition (a class label, with a null row for none; plain vectors), or one learned vector without conditions.

- `positions`: a learned table as in GPT-2; fixed sines and cosines (Vaswani et al., 2017) of the place in the sequence or in
  the grid; rotary (Su et al., 2021) in either; relative (Shaw et al., 2018); none. Rotary and relative ones fit any grid.
- `mask`: all earlier tokens; a sliding window of them; the local blocks of the Image Transformer (Parmar et al., 2018); the
  strided and fixed patterns of sparse transformers (Child et al., 2019), of which layers take the two tables in turn. With
  any mask but `full` the prefix stays in sight if there are conditions.
- `norm_at` after: the original transformer's order, h ← norm(h + f(h)), without a last norm.
- `init` imagegpt: the deviations of Image GPT's code, whose output layer starts at zero; otherwise GPT-2's, 0.02 everywhere,
  over √(2 depth) where a sum of residuals is fed, 0.01 for positions.

Images are read pixel by pixel, a pixel's channels one after the other, each channel with a table of its own; `local-2d`
reads block by block, and `order` says so. A grid's columns are counted in tokens: three a pixel with three channels.

Ours: dropout leaves the attention's weights alone, which keeps its fused kernel; it acts on the embedded tokens and on what
is added to them, as in GPT-2. Sampling keeps keys and values (`gencli/nn/attention.py`).

Tokens `(N, *x.shape)` with x `(C, H, W)` pixels or `(h, w)` codes; logits `(N, *x.shape, V)`. With `ordered=True` tokens are
`(N, T)` in the order of reading, and may be the first T alone.

Errors: a width that the heads do not divide or that the positions cannot use, x that is no grid, masks' sizes that are
missing, a tied output of several channels, a condition that is neither label nor vector.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._causal import Conditions
from gencli.nn import masks
from gencli.nn.attention import Cache, SelfAttention
from gencli.nn.embed import sinusoidal
from gencli.nn.positions import angles, angles_2d

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "quick-gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
}


class State(NamedTuple):
    """A sampling state: the prefix `(N, width)`, and a cache for each layer once a token was told."""

    prefix: Tensor
    caches: tuple[Cache, ...]


class Transformer(nn.Module, Component):
    """A decoder of blocks of attention and perceptrons."""

    role: ClassVar[str] = "sequence"
    order: Tensor  # (L,) position in x.flatten() of the i-th token
    places: Tensor  # (L,) where each position of x.flatten() comes in the sequence
    offsets: Tensor  # (L,) what is added to a token to find its channel's row
    fixed: Tensor | None  # (L, width) positions that are not learned
    cos: Tensor | None  # (L, D / 2) rotary positions
    sin: Tensor | None

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "width of a token", low=4)
        depth: int = opt(4, "number of blocks", low=1)
        heads: int = opt(4, "attention heads", low=1)
        attention: int = opt(0, "width of queries, of keys and of values, all heads together; 0 = the token's", low=0)
        mlp: float = opt(4.0, "width of the perceptron as a multiple of the token's", low=0.1)
        dropout: float = opt(
            0.0, "dropout of embedded tokens and of what attention and perceptron add", low=0, high=0.9
        )
        activation: Literal["gelu-tanh", "gelu", "quick-gelu", "relu"] = opt("gelu-tanh", "of the perceptron")
        norm: Literal["layer", "rms"] = opt("layer", "layer norm, or a gain over the root mean square alone")
        norm_at: Literal["before", "after"] = opt("before", "norm before attention and perceptron, or after the sum")
        bias: bool = opt(True, "biases in the linear layers of the blocks")
        tied: bool = opt(False, "the output layer is the table of tokens")
        positions: Literal[
            "learned", "sinusoidal", "sinusoidal-2d", "rotary", "rotary-2d", "relative", "none"
        ] = opt("learned", "how places are told")  # fmt: skip
        clip: int = opt(16, "largest distance that relative positions tell apart", low=1)
        mask: Literal["full", "window", "local-1d", "local-2d", "strided", "fixed"] = opt(
            "full", "which earlier tokens are seen"
        )
        span: int = opt(0, "tokens in a window, or the stride of sparse masks; 0 = a row", low=0)
        block: tuple[int, ...] = opt((), "tokens of a local block, or its rows and columns (8,24)")
        memory: tuple[int, ...] = opt((), "tokens before a local block, or rows above it and columns beside it")
        init: Literal["gpt2", "imagegpt"] = opt("gpt2", "whose initial weights")

    def __init__(self, config: Config, x: Field, vocab: int, cond: Mapping[str, Field] | None = None) -> None:
        nn.Module.__init__(self)
        self.config, self.vocab = config, vocab
        if len(x.shape) not in (2, 3):
            raise GencliError(
                f"network transformer works on images and grids of codes, got {x.kind} of shape {x.shape}",
                "choose image data",
            )
        self.channels, self.rows, columns = (1, *x.shape) if len(x.shape) == 2 else x.shape
        self.columns = columns * self.channels
        _check(config, self.channels)
        width, tokens = config.width, x.size
        self._read_order()
        self.table = nn.Embedding(self._rows(), width)
        self.given = Conditions(cond or {}, width, "transformer")
        self.sos = None if self.given.width else nn.Parameter(torch.empty(width))
        self.learned = nn.Embedding(tokens, width) if config.positions == "learned" else None
        self._fixed_positions()
        self._masks()
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = make_norm(config) if config.norm_at == "before" else nn.Identity()
        self.head = nn.Linear(width, self._outputs(), bias=False)
        if config.tied:
            self.head.weight = self.table.weight
        self._initialise()

    # -------------------------------------------------------------------------------------------------------------- making

    def _rows(self) -> int:
        """Of the table of tokens."""
        return self.channels * self.vocab

    def _outputs(self) -> int:
        """Numbers that tell a token."""
        return self.vocab

    def _read_order(self) -> None:
        """Buffers about the order of reading: raster, channels innermost, or block by block."""
        rows, columns, channels = self.rows, self.columns, self.channels
        size = rows * columns
        grid = torch.arange(size)
        if self.config.mask == "local-2d":
            grid = masks.block_order(rows, columns, cast("tuple[int, int]", self.config.block))
        row, column = grid // columns, grid % columns
        order = column % channels * (size // channels) + row * (columns // channels) + column // channels
        self.raster = channels == 1 and self.config.mask != "local-2d"
        self.grid = row, column  # of the i-th token
        self.register_buffer("order", order, persistent=False)
        self.register_buffer("places", order.argsort(), persistent=False)
        self.register_buffer("offsets", column % channels * self.vocab, persistent=False)

    def _fixed_positions(self) -> None:
        kind, width = self.config.positions, self.config.width
        size, (row, column) = (self.config.attention or width) // self.config.heads, self.grid
        places = torch.arange(len(row))
        fixed = turns = None
        if kind == "sinusoidal":
            fixed = sinusoidal(places.double(), width)
        elif kind == "sinusoidal-2d":
            fixed = torch.cat([sinusoidal(axis.double(), width // 2) for axis in (column, row)], dim=1)
        elif kind == "rotary":
            turns = angles(places, size)
        elif kind == "rotary-2d":
            turns = angles_2d(row, column, size)
        default = torch.get_default_dtype()
        self.register_buffer("fixed", None if fixed is None else fixed.to(default), persistent=False)
        self.register_buffer("cos", None if turns is None else turns.cos().to(default), persistent=False)
        self.register_buffer("sin", None if turns is None else turns.sin().to(default), persistent=False)

    def _masks(self) -> None:
        c, tokens = self.config, self.rows * self.columns
        span = c.span or self.columns
        made: tuple[Tensor, ...] = ()
        if c.mask == "window":
            made = (masks.window(tokens, span),)
        elif c.mask == "local-1d":
            made = (masks.local_1d(tokens, c.block[0], c.memory[0]),)
        elif c.mask == "local-2d":
            block, memory = cast("tuple[int, int]", c.block), cast("tuple[int, int]", c.memory)
            made = (masks.local_2d(self.rows, self.columns, block, memory),)
        elif c.mask == "strided":
            made = masks.strided(tokens, span)
        elif c.mask == "fixed":
            made = masks.fixed(tokens, span)
        for i, table in enumerate(made):
            if self.given.width:
                table[:, 0] = True
            self.register_buffer(f"mask{i}", table, persistent=False)
        self._tables = len(made)

    def _initialise(self) -> None:
        c, theirs = self.config, self.config.init == "imagegpt"
        for name, p in self.named_parameters():
            if p.ndim < 2:
                continue  # gains are one; biases below
            std = 0.02
            if name.endswith(("attention.qkv.weight", "attention.proj.weight")) and theirs:
                std = c.width**-0.5 * (c.depth**-0.5 if name.endswith("proj.weight") else 1.0)
            elif name.endswith(("attention.proj.weight", "down.weight")) and not theirs:
                std = 0.02 * (2 * c.depth) ** -0.5
            elif name == "learned.weight":
                std = 0.01
            nn.init.normal_(p, std=std)
        if theirs and not c.tied:
            nn.init.zeros_(self.head.weight)
        if self.sos is not None:
            nn.init.normal_(self.sos, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    # ------------------------------------------------------------------------------------------------------------- sequences

    def forward(self, tokens: Tensor, *, ordered: bool = False, **cond: Tensor) -> Tensor:
        """Logits `(N, *x.shape, V)` of tokens `(N, *x.shape)`, each from earlier tokens only; `ordered`: `(N, T, V)`."""
        ordered = ordered or self.raster
        sequence = tokens.flatten(1) if ordered else self._sequence(tokens)
        logits = self.head(self.norm(self._through(sequence, cond, len(self.blocks))))
        return (logits if ordered else logits[:, self.places]).view(*tokens.shape, self.vocab)

    def hidden(self, tokens: Tensor, layer: int, **cond: Tensor) -> Tensor:
        """What the attention of block `layer` reads `(N, L, width)`, in the order of reading; `depth`: what the output does."""
        h = self._through(self._sequence(tokens), cond, layer)
        if layer == len(self.blocks):
            return self.norm(h)
        return self.stack[layer].norm1(h) if self.config.norm_at == "before" else h

    def attention(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        """How much each token takes from each, `(N, depth, heads, L, L)`: row i tells token i, column 0 is the prefix."""
        h, made = self._embed(self._sequence(tokens), cond), []
        for i, block in enumerate(self.stack):
            seen, turns = self._view(i, h.shape[1])
            read = block.norm1(h) if self.config.norm_at == "before" else h
            made.append(block.attention.weights(read, seen, turns))
            h = block(h, seen, turns)
        return torch.stack(made, dim=1)

    @property
    def stack(self) -> list[Block]:
        """The blocks."""
        return cast("list[Block]", list(self.blocks))

    def _sequence(self, tokens: Tensor) -> Tensor:
        """Tokens `(N, *x.shape)` in the order of reading `(N, L)`."""
        return tokens.flatten(1)[:, self.order]

    def _read(self, tokens: Tensor, where: slice) -> Tensor:
        """Tokens at their places in the sequence as vectors `(N, T, width)`."""
        return self.table(tokens + self.offsets[where])

    def _through(self, sequence: Tensor, cond: Mapping[str, Tensor], layers: int) -> Tensor:
        h = self._embed(sequence, cond)
        for i, block in enumerate(self.stack[:layers]):
            h = block(h, *self._view(i, h.shape[1]))
        return h

    def _embed(self, sequence: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        known = self._read(sequence[:, :-1], slice(0, sequence.shape[1] - 1))
        h = torch.cat([self._prefix(len(sequence), cond)[:, None], known], dim=1)
        return self.dropout(self._placed(h, slice(0, sequence.shape[1])))

    def _prefix(self, n: int, cond: Mapping[str, Tensor]) -> Tensor:
        return self.given(n, cond, self.table.weight) if self.sos is None else self.sos.expand(n, -1)

    def _placed(self, h: Tensor, where: slice) -> Tensor:
        table = self.fixed if self.learned is None else self.learned.weight
        return h if table is None else h + table[where]

    def _view(self, layer: int, tokens: int) -> tuple[Tensor | None, tuple[Tensor, Tensor] | None]:
        """What the first tokens see in a block, and their turns."""
        turns = None if self.cos is None or self.sin is None else (self.cos[:tokens], self.sin[:tokens])
        return (self._mask(layer)[:tokens, :tokens] if self._tables else None), turns

    def _mask(self, layer: int) -> Tensor:
        return cast(Tensor, getattr(self, f"mask{layer % self._tables}"))

    # ----------------------------------------------------------------------------------------------------------- step by step

    def start(self, n: int, **cond: Tensor) -> State:
        """The state before the first token."""
        return State(self._prefix(n, cond), ())

    def next(self, token: Tensor | None, state: State) -> tuple[Tensor, State]:
        """Logits `(N, V)` of the next token in the order of reading, and the new state."""
        return self._next(None if token is None else token[:, None], state)

    def _next(self, token: Tensor | None, state: State) -> tuple[Tensor, State]:
        """What the head says after the last token, which stands in a sequence of its own `(N, 1, …)`; and the new state."""
        i = state.caches[0].length if state.caches else 0
        assert (token is None) == (i == 0), "the first logits need no token, all others the one before"
        x = state.prefix[:, None] if token is None else self._read(token, slice(i - 1, i))
        here = slice(i, i + 1)
        x = self._placed(x, here)
        turns = None if self.cos is None or self.sin is None else (self.cos[here], self.sin[here])
        caches = state.caches or tuple(block.attention.empty(x) for block in self.stack)
        made = []
        for layer, (block, cache) in enumerate(zip(self.stack, caches, strict=True)):
            seen = self._mask(layer)[here, : i + 1] if self._tables else None
            x, cache = block.step(x, cache, seen, turns)
            made.append(cache)
        return self.head(self.norm(x))[:, 0], State(state.prefix, tuple(made))


class Block(nn.Module):
    """Attention and a perceptron, each with a norm before it, or after its sum with what it read."""

    def __init__(self, config: Transformer.Config) -> None:
        super().__init__()
        width, inner = config.width, int(config.width * config.mlp)
        self.before = config.norm_at == "before"
        clip = config.clip if config.positions == "relative" else 0
        self.norm1, self.norm2 = make_norm(config), make_norm(config)
        self.attention = SelfAttention(width, config.heads, config.bias, clip, config.attention)
        self.up, self.down = nn.Linear(width, inner, bias=config.bias), nn.Linear(inner, width, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, h: Tensor, seen: Tensor | None, turns: tuple[Tensor, Tensor] | None) -> Tensor:
        return self._rest(h, self.attention(self.norm1(h) if self.before else h, seen, turns))

    def step(
        self, h: Tensor, cache: Cache, seen: Tensor | None, turns: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Cache]:
        """One token `(N, 1, width)`."""
        made, cache = self.attention.step(self.norm1(h) if self.before else h, cache, seen, turns)
        return self._rest(h, made), cache

    def _rest(self, h: Tensor, attended: Tensor) -> Tensor:
        h = h + self.dropout(attended)
        if self.before:
            return h + self.dropout(self._perceptron(self.norm2(h)))
        h = self.norm1(h)
        return self.norm2(h + self.dropout(self._perceptron(h)))

    def _perceptron(self, h: Tensor) -> Tensor:
        return self.down(self.activation(self.up(h)))


def make_norm(config: Transformer.Config) -> nn.Module:
    """The norm of the settings."""
    return nn.LayerNorm(config.width) if config.norm == "layer" else nn.RMSNorm(config.width, eps=1e-5)


def _check(config: Transformer.Config, channels: int) -> None:
    """Refuse sizes that do not fit together."""
    turned = config.heads * {"rotary": 2, "rotary-2d": 4}.get(config.positions, 1)
    inner = ("attention", config.attention, turned) if config.attention else ("width", config.width, turned)
    for name, given, need in (inner, ("width", config.width, 2 if config.positions == "sinusoidal-2d" else 1)):
        if given % need:
            raise GencliError(
                f"network transformer: {name} {given} cannot be shared by {config.heads} heads "
                f"with {config.positions} positions",
                f"give a multiple of {need}: --net.{name} {need * 16}",
            )
    if config.tied and channels > 1:
        raise GencliError(
            f"network transformer: tied needs one channel, the data have {channels}",
            "leave --net.tied out, or give the colours as codes with --codec palette",
        )
    sizes = {"local-1d": 1, "local-2d": 2}.get(config.mask, 0)
    for name in ("block", "memory") if sizes else ():
        given = getattr(config, name)
        if len(given) != sizes or min(given) < (name == "block"):
            raise GencliError(
                f"network transformer: mask {config.mask} needs {sizes} numbers for {name}, got {list(given)}",
                f"give --net.{name} {'64' if sizes == 1 else '4,4'}",
            )
