"""MaskGIT: Masked Generative Image Transformer (Chang et al., 2022). arXiv:2202.04200

Offers: tokens

BERT over partly masked tokens: every token sees every other. The class comes first, as a token; embeddings of tokens and of
learned positions are summed and normalised; then, norms after the sums,

    h ← norm(h + attention(h));   h ← norm(h + W₂ gelu(W₁ h));   logits = E norm(gelu(W h)) + b

with E the rows of the same table that embeds the tokens. The table holds the V values, the classes, and the mask, b as many
biases. Dropout follows the embedding, the attention's weights, and both branches of a block; norms have ε = 1e-12; weights
start truncated normal of std 0.02.

On 16×16 codes out of 1,024 with 1,000 classes, width 768, depth 24, heads 16: 172,457,193 parameters.

Ours: an absent class is the masked class, so that labels can be dropped without one more row.

Shapes: tokens `(N, L)`, whole numbers in 0 … V, with V the mask, in the order of `x.flatten(1)`; logits `(N, L, V)`.

Errors: more than 4,096 tokens (attention is over all pairs), a width that the heads do not divide, a condition that is not
a label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.nn.attention import attend
from gencli.nn.embed import label_field

EPSILON = 1e-12
MOST_TOKENS = 4096


class BidirectionalTransformer(nn.Module, Component):
    """BERT over tokens."""

    role: ClassVar[str] = "tokens"

    @dataclass(frozen=True)
    class Config:
        width: int = opt(128, "width of a token", low=2)
        depth: int = opt(4, "number of blocks", low=1)
        heads: int = opt(4, "attention heads", low=1)
        mlp: float = opt(4.0, "width of the perceptron as a multiple of the token's", low=0.1)
        dropout: float = opt(0.1, "dropout of embeddings, attention and branches", low=0, high=1)

    def __init__(self, config: Config, x: Field, vocab: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config, self.vocab = config, vocab
        _check(config, x)
        label, width = label_field(cond, "bidirectional-transformer"), config.width
        classes = 0 if label is None else label.vocab or 0
        self.mask, self.first = vocab + classes, int(label is not None)
        self.table = nn.Embedding(self.mask + 1, width)
        self.positions = nn.Parameter(torch.empty(self.first + x.size, width))
        self.norm, self.dropout = nn.LayerNorm(width, eps=EPSILON), nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.dense, self.last_norm = nn.Linear(width, width), nn.LayerNorm(width, eps=EPSILON)
        self.bias = nn.Parameter(torch.zeros(self.mask + 1))
        self._initialise()

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim > 1:
                nn.init.trunc_normal_(weight, std=0.02, a=-0.04, b=0.04)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        """The logits of every token."""
        index = torch.where(tokens == self.vocab, self.mask, tokens)
        if self.first:
            label = cond.get("label")
            token = tokens.new_full((len(tokens),), self.mask) if label is None else self.vocab + label
            index = torch.cat([token[:, None], index], dim=1)
        assert index.shape[1] == len(self.positions), f"a transformer for {len(self.positions)} tokens: {index.shape}"
        h = self.dropout(self.norm(self.table(index) + self.positions))  # (N, first + L, width)
        for block in self.blocks:
            h = block(h)
        h = self.last_norm(_gelu(self.dense(h[:, self.first :])))
        return F.linear(h, self.table.weight[: self.vocab], self.bias[: self.vocab])


class _Block(nn.Module):
    """Attention and a perceptron, each normalised after it is added."""

    def __init__(self, config: BidirectionalTransformer.Config) -> None:
        super().__init__()
        width, inner = config.width, int(config.width * config.mlp)
        self.heads = config.heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, h: Tensor) -> Tensor:
        h = self.norm1(h + self.dropout(self._attention(h)))
        return self.norm2(h + self.dropout(self.down(_gelu(self.up(h)))))

    def _attention(self, h: Tensor) -> Tensor:
        n, tokens, width = h.shape
        q, k, v = self.qkv(h).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (N, heads, tokens, D) each
        if self.training and self.dropout.p:
            weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)).softmax(-1)  # (N, heads, tokens, tokens)
            seen = self.dropout(weights).to(v.dtype) @ v
        else:
            seen = attend(q, k, v)
        return self.proj(seen.transpose(1, 2).reshape(n, tokens, width))


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")  # as in the released code


def _check(config: BidirectionalTransformer.Config, x: Field) -> None:
    if x.size > MOST_TOKENS:
        raise GencliError(
            f"network bidirectional-transformer: {x.size:,} tokens ({x.kind} of shape {x.shape}) are more than "
            f"{MOST_TOKENS:,}, and each attends to all",
            "give `--codec RUN` of a discrete autoencoder such as vqgan, or a smaller --image-size",
        )
    if config.width % config.heads:
        raise GencliError(
            f"network bidirectional-transformer: width {config.width} is not divisible by {config.heads} heads",
            "heads of size 32 to 64 are usual: --net.width 128 --net.heads 4",
        )
