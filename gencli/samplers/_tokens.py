"""What samplers of tokens share: the values that may be drawn, and tokens that are given.

`top_k` keeps the k likeliest values; `top_p` the fewest likeliest whose probabilities reach p (the likeliest always);
both after the temperature T, as usual for language models. T = 0 takes the likeliest.

Two reserved conditions, which no model takes, complete a sample: `known`, tokens `(N, *shape)` in model space, and `keep`,
bool of the same shape. Where `keep` holds, the sample has the known token and nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gencli.config import opt
from gencli.core import Batch


@dataclass(frozen=True)
class Truncation:
    """The settings by which probabilities are sharpened and cut; the Config of every sampler of tokens has them."""

    temperature: float = opt(1.0, "divides the logits; 0 = always the likeliest value", low=0)
    top_k: int = opt(0, "keep this many likeliest values; 0 = all", low=0)
    top_p: float = opt(1.0, "keep the likeliest values up to this probability", low=0, high=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """`(M, V)` after temperature, top-k and top-p; their sum may be below 1."""
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
        logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[1]:
            least = logits.topk(self.top_k).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        p = logits.softmax(-1)
        if self.top_p < 1:
            ranked, index = p.sort(descending=True, stable=True)
            before = ranked.cumsum(-1) - ranked
            keep = before < self.top_p
            keep[:, 0] = True
            p = p * torch.zeros_like(keep).scatter(1, index, keep)
        return p


class Given(NamedTuple):
    """Tokens that are not drawn, over `x.flatten(1)`."""

    tokens: Tensor  # (N, L), 0 where nothing is known
    keep: Tensor  # (N, L) bool

    @classmethod
    def of(cls, cond: Batch, n: int, shape: Sequence[int], device: torch.device) -> Given:
        """From the reserved conditions; without them nothing is kept."""
        whole = (n, *shape)
        if "keep" not in cond:
            blank = torch.zeros(whole, dtype=torch.long, device=device).flatten(1)
            return cls(blank, blank.bool())
        tokens, keep = cond["known"], cond["keep"]
        for name, value in (("known", tokens), ("keep", keep)):
            assert tuple(value.shape) == whole, f"'{name}' has shape {tuple(value.shape)}, the samples have {whole}"
        keep = keep.to(device, torch.bool).flatten(1)
        return cls(tokens.to(device, torch.long).flatten(1) * keep, keep)
