"""MaskGIT: Masked Generative Image Transformer (Chang et al., 2022). arXiv:2202.04200

Offers: sample

    L = −E Σ_{i masked} log p(x_i | x with ⌈cos(πr/2) L⌉ tokens masked, c),   r ~ U(0, 1)

Which tokens are masked is uniform; only they count, with smoothed labels. On average 2/π of them are masked, from one to all,
so the network can fill in any part from any other: it draws an image in a few steps (`samplers/confidence.py`). There is no
likelihood: the steps' distributions are not factors of one.

x is `(C, H, W)` pixels of few levels, or `(h, w)` codes (`--codec vqgan`), whole numbers in 0 … V−1. V is the mask.

Ours: the sum is divided by the number of tokens L, a constant; labels are dropped with the probability `label_dropout`, so
that one model serves with and without a class, and with guidance (0 in the paper). `masked_accuracy` is logged: how often
the likeliest value of a masked token is the right one, a mean over items.

Raises GencliError for continuous data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli import core
from gencli.config import Part, opt, part
from gencli.core import Batch, Losses, Model, Rng, Spec, Turn
from gencli.models._conditions import drop_labels
from gencli.models._tokens import vocab_of


class MaskGIT(Model):
    """Masked tokens from the others."""

    codecs: ClassVar[tuple[Mapping[str, Any], ...]] = ({"name": "tokens"},)

    @dataclass(frozen=True)
    class Config:
        label_smoothing: float = opt(0.1, "share of the target spread over all values", low=0, high=1)
        label_dropout: float = opt(0.1, "share of items trained without their label", low=0, high=1)
        net: Part = part("networks", "bidirectional-transformer", "network that sees all tokens", role="tokens")

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__(config, spec)
        self.vocab = vocab_of(spec, self.public_name())
        self.net: Any = config.net.build(spec.x, self.vocab, spec.cond)

    def logits_at(self, tokens: Tensor, **cond: Tensor) -> Tensor:
        """`(N, L, V)` from tokens `(N, L)` of which any may be masked (V); an absent label is the null label."""
        return self.net(tokens, **self._taken(cond))

    def loss(self, batch: Batch, turn: Turn) -> Losses:
        tokens, cond = batch["x"].flatten(1), self._taken(batch)
        if self.training:
            cond = drop_labels(cond, self.spec.cond, self.config.label_dropout, turn.rng.at("labels"))
        masked = draw_masks(turn.rng, *tokens.shape).to(tokens.device)
        logits = self.logits_at(tokens.masked_fill(masked, self.vocab), **cond)
        with core.full_precision(tokens.device):
            wide = logits if logits.dtype == torch.float64 else logits.float()
            smooth = self.config.label_smoothing
            nats = F.cross_entropy(wide.movedim(-1, 1), tokens, reduction="none", label_smoothing=smooth)
            each = (nats * masked).mean(1)
        right = ((logits.argmax(-1) == tokens) & masked).sum(1) / masked.sum(1)
        return {"loss": each.mean(), "each": each, "masked_accuracy": right.mean()}

    def _taken(self, cond: Mapping[str, Tensor]) -> Batch:
        return {key: value for key, value in cond.items() if key in self.spec.cond}


def draw_counts(rng: Rng, n: int, length: int) -> Tensor:
    """`(n,)`, ⌈cos(πr/2) · length⌉ with r ~ U(0, 1): from 1 to `length`."""
    share = (rng.at("ratio").uniform((n,), torch.float64) * (math.pi / 2)).cos()
    return (share * length).ceil().long()


def draw_masks(rng: Rng, n: int, length: int) -> Tensor:
    """`(n, length)`, True for as many tokens of each row as `draw_counts` says, any subset as likely as any other."""
    rank = rng.at("mask").uniform((n, length), torch.float64).argsort(1).argsort(1)
    return rank < draw_counts(rng, n, length)[:, None]
