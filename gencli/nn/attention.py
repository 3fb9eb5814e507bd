"""Softmax attention by the kernel that is fastest for the device, type and shape; heads, and caches for one token at a time."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gencli.nn.masks import causal
from gencli.nn.positions import Relative, rotate

PLAIN_TOKENS = 512  # beyond it the matrix of weights costs more memory than the fused kernel costs time
ROOM = 64  # tokens that a cache has room for at first


def plain_is_faster(device: str, dtype: torch.dtype, tokens: int, head: int) -> bool:
    """A static table, so that a run uses one kernel from its first step to its last.

    On CPUs the backward pass of the fused kernel in bfloat16 takes most of a step: measured (forward and backward, batch ×
    heads × tokens × head size) 60 against 10 ms at 128×3×49×64 and 29 against 14 ms at 64×1×256×64, but no gain for
    heads of size 8. In float32, and on accelerators, the fused kernel wins.
    """
    return device == "cpu" and dtype in (torch.bfloat16, torch.float16) and tokens <= PLAIN_TOKENS and head >= 16


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`softmax(q kᵀ / √D) v` for `(N, heads, tokens, D)`."""
    if not plain_is_faster(q.device.type, q.dtype, k.shape[-2], q.shape[-1]):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)
    weights = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (N, heads, tokens, tokens)
    return weights.softmax(-1) @ v


def attend_where(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None) -> Tensor:
    """`attend` with what each token sees: a table `(tokens, tokens)` of booleans, or None for itself and all before it."""
    if not plain_is_faster(q.device.type, q.dtype, k.shape[-2], q.shape[-1]):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None)
    return weigh(q, k, causal(q.shape[-2]).to(q.device) if seen is None else seen) @ v


def weigh(q: Tensor, k: Tensor, seen: Tensor | None, scores: Tensor | None = None) -> Tensor:
    """The weights `softmax((q kᵀ + scores) / √D)` `(N, heads, Q, K)`, zero where nothing is `seen` `(Q, K)`."""
    made = q @ k.transpose(-1, -2)
    made = (made if scores is None else made + scores) * q.shape[-1] ** -0.5
    return (made if seen is None else made.masked_fill(~seen, -torch.inf)).softmax(-1)


class Cache(NamedTuple):
    """Keys and values of the tokens so far, `(N, heads, T, D)`: what an old one shows never changes.

    Both are the first T places of a buffer with room for more. A new token is written behind them if nobody has written
    there yet, which the buffer remembers; from a state that was already continued, another branch gets a copy.
    """

    keys: Tensor
    values: Tensor

    @property
    def length(self) -> int:
        """How many tokens it holds."""
        return self.keys.shape[2]

    def push(self, k: Tensor, v: Tensor) -> Cache:
        """With one more token, `(N, heads, 1, D)` each."""
        return Cache(_longer(self.keys, k), _longer(self.values, v))


def _longer(seen: Tensor, new: Tensor) -> Tensor:
    if torch.is_grad_enabled():  # what was saved for a gradient may not be written to
        return torch.cat([seen, new], dim=2)
    tokens, room = seen.shape[2], seen._base
    if room is None or getattr(room, "filled", None) != tokens or room.shape[2] == tokens:
        room = seen.new_empty(*seen.shape[:2], max(ROOM, 2 * tokens), seen.shape[3])
        room[:, :, :tokens] = seen
    room[:, :, tokens : tokens + 1] = new
    room.filled = tokens + 1  # type: ignore[attr-defined]
    return room[:, :, : tokens + 1]


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself: whole, or one token at a time with a cache.

    Args:
        width: of a token.
        heads: attention heads.
        bias: whether the linear layers have one.
        clip: largest distance of relative positions; 0 = none.
        inner: width of queries, of keys and of values, a multiple of `heads`; 0 = that of a token.

    `turns` are cosines and sines of rotary positions, `(T, D / 2)` each.
    """

    def __init__(self, width: int, heads: int, bias: bool = True, clip: int = 0, inner: int = 0) -> None:
        super().__init__()
        inner = inner or width
        assert inner % heads == 0, f"a width of {inner} cannot be shared by {heads} heads"
        self.heads, self.size = heads, inner // heads
        self.qkv, self.proj = nn.Linear(width, 3 * inner, bias=bias), nn.Linear(inner, width, bias=bias)
        self.relative = Relative(self.size, clip) if clip else None

    def forward(self, x: Tensor, seen: Tensor | None, turns: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`(N, T, width)`; `seen` `(T, T)`, None = itself and all before it."""
        q, k, v = self._split(x, turns)
        if self.relative is None:
            return self._merge(attend_where(q, k, v, seen))
        weights, rows = self._weights(q, k, seen)
        return self._merge(weights @ v + self.relative.mixed(weights, rows))

    def weights(self, x: Tensor, seen: Tensor | None, turns: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """How much each token takes from each, `(N, heads, T, T)`."""
        q, k, _ = self._split(x, turns)
        return self._weights(q, k, seen)[0]

    def empty(self, x: Tensor) -> Cache:
        """The cache before the first token, for tokens like `x` `(N, 1, width)`."""
        none = x.new_empty(len(x), self.heads, 0, self.size)
        return Cache(none, none)

    def step(
        self, x: Tensor, cache: Cache, seen: Tensor | None, turns: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Cache]:
        """The next token `(N, 1, width)` after those of the cache; `seen` `(1, T)`, None = all of them."""
        q, k, v = self._split(x, turns)
        cache = cache.push(k, v)
        if self.relative is None:
            whole = torch.nn.functional.scaled_dot_product_attention(q, cache.keys, cache.values, attn_mask=seen)
            return self._merge(whole), cache
        places = torch.arange(cache.length, device=x.device)
        rows = self.relative.rows(places[-1:], places)
        weights = weigh(q, cache.keys, seen, self.relative.scores(q, rows))
        return self._merge(weights @ cache.values + self.relative.mixed(weights, rows)), cache

    def _split(self, x: Tensor, turns: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor, Tensor]:
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (N, heads, T, D) each
        return (q, k, v) if turns is None else (rotate(q, *turns), rotate(k, *turns), v)

    def _weights(self, q: Tensor, k: Tensor, seen: Tensor | None) -> tuple[Tensor, Tensor]:
        places = torch.arange(q.shape[2], device=q.device)
        seen = causal(len(places)).to(q.device) if seen is None else seen
        if self.relative is None:
            return weigh(q, k, seen), places
        rows = self.relative.rows(places, places)
        return weigh(q, k, seen, self.relative.scores(q, rows)), rows

    def _merge(self, x: Tensor) -> Tensor:
        return self.proj(x.transpose(1, 2).flatten(2))
