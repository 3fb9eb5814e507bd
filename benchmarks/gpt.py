"""A transformer's training step on 256 tokens, against a plain loop in the style of nanoGPT.

gencli's side is its `Trainer` with its own defaults (precision, averaged weights), data included. The other side is the loop
that every tutorial has: a decoder of `torch.nn.functional` calls with causal fused attention, `torch.optim.AdamW` with decay
on matrices only, clipping, in fp32, its batch at hand. Widths, depth and heads are the same, and so are the numbers of
parameters; nothing is averaged there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._frame import Case, Outcome, Side

LR = 1e-3


@dataclass(frozen=True)
class Size:
    """A network for square grids of tokens."""

    side: int
    vocab: int  # grey levels that the digits have at this side
    width: int
    depth: int
    heads: int
    batch: int


def cases(folder: Path, mini: bool) -> list[Case]:
    """One size."""
    size = Size(8, 17, 16, 2, 2, 4) if mini else Size(16, 256, 256, 6, 4, 16)
    name = f"training step, gpt, {size.side**2} tokens, batch {size.batch}"
    return [Case(name, "a plain loop", partial(training, size), 1 if mini else 5, partial(same_start, size), aim=1.5)]


class Block(nn.Module):
    """Attention and a perceptron, norms before them."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, tokens, 3 * self.heads, -1).transpose(1, 2).chunk(3, dim=1)
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(seen.transpose(1, 2).reshape(n, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))


class Plain(nn.Module):
    """The decoder, its optimiser, and a step."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        tokens = size.side**2
        self.table, self.places = nn.Embedding(size.vocab + 1, size.width), nn.Embedding(tokens, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.depth))
        self.norm, self.head = nn.LayerNorm(size.width), nn.Linear(size.width, size.vocab, bias=False)
        for p in self.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.02)
        matrices = [p for p in self.parameters() if p.ndim > 1]
        rest = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `(N, T, V)` from the tokens before each; the first is told by a token of its own."""
        told = F.pad(tokens[:, :-1], (1, 0), value=self.head.out_features)
        x = self.table(told) + self.places.weight
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))

    def step(self, tokens: Tensor) -> float:
        """One step; the loss in nats a token."""
        loss = F.cross_entropy(self(tokens).flatten(0, 1), tokens.flatten())
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimiser.step()
        return loss.item()


def run_of(size: Size) -> Any:
    """A fresh run and its training data."""
    from gencli.bundle import Run
    from gencli.data import open_table
    from gencli.training.session import resolve

    net = {"name": "transformer", "width": size.width, "depth": size.depth, "heads": size.heads}
    train = {"steps": 10_000, "batch_size": size.batch, "lr": LR, "optimizer": "adamw", "weight_decay": 0.1}
    tables = resolve(
        {
            "model": {"name": "gpt", "label_dropout": 0.0, "net": net},
            "data": {"name": "digits", "image_size": size.side, "unconditional": True},
            "train": {**train, "betas": [0.9, 0.95], "clip": 1.0, "save_every": 10_000},
            "sample": {"name": "next-token"},
        }
    )
    data = open_table(tables["data"])
    torch.manual_seed(0)
    run = Run.build(tables, data.spec)
    run.config = {"name": "bench", "recipe": tables}
    return run, data.split("train")


def training(size: Size, who: str) -> Side:
    """A step of either side; the loss in nats a token, and the number of parameters."""
    if who == "gencli":
        from benchmarks._trainer import prepared
        from gencli.training import precision

        run, items = run_of(size)
        made = prepared(run, items, precision.resolve("auto", torch.device("cpu"), "transformer"))
        count = sum(p.numel() for p in run.model.parameters())
        return lambda: (float(made.take_step().losses["loss"]) / size.side**2, count)
    plain = Plain(size)
    tokens = torch.randint(size.vocab, (size.batch, size.side**2), generator=torch.Generator().manual_seed(0))
    count = sum(p.numel() for p in plain.parameters())
    return lambda: (plain.step(tokens), count)


def same_start(size: Size, ours: tuple[float, int], theirs: tuple[float, int]) -> Outcome:
    """The networks are of one size, and neither's loss has left that of an even guess upwards."""
    worse = max(ours[0], theirs[0]) / math.log(size.vocab)
    return {"difference of parameters": (abs(ours[1] - theirs[1]), 0), "losses of both over ln V": (worse, 1.1)}
