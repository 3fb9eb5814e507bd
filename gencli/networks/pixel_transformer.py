"""Image Transformer: whole pixels, told by a mixture of logistics (Parmar et al., 2018). arXiv:1802.05751

Offers: sequence

    h_i = Σ_c e_c(x_ic),   p(x_i | x_<i) = Σ_k π_k Π_c [σ((x_ic + ½ − μ_kc) / s_kc) − σ((x_ic − ½ − μ_kc) / s_kc)]

The blocks of `gencli/networks/transformer.py` over pixels instead of sub-pixels: an image has a third of the tokens, and the
last layer says a discretised logistic mixture of the pixel (`nn/logistic_mixture.py`), from which the logits of every channel
follow. Blocks, memories, windows and places are counted in pixels. The paper's model of CIFAR-10 has 10 mixtures.

Ours: a pixel is the sum of its channels' rows; a linear map of the rows side by side, as in the paper, makes the same
functions.

Tokens `(N, C, H, W)`; logits `(N, C, H, W, V)`. With `ordered=True` tokens are `(N, T)` in the order of reading, channels
innermost, and may be the first T alone. Raises GencliError for codes, which have no order, and what `transformer` raises.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from gencli import core
from gencli.config import opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.transformer import State, Transformer
from gencli.nn.logistic_mixture import LogisticMixture, numbers


class Told(NamedTuple):
    """A sampling state: the transformer's, the pixel's channels so far, and its mixture's numbers `(N, M)`."""

    inner: State
    pixel: tuple[Tensor, ...]
    said: Tensor


class PixelTransformer(Transformer):
    """A decoder whose tokens are pixels."""

    @dataclass(frozen=True)
    class Config(Transformer.Config):
        mixtures: int = opt(10, "components of the mixture of logistic distributions", low=1)

    def __init__(self, config: Config, x: Field, vocab: int, cond: Mapping[str, Field] | None = None) -> None:
        if len(x.shape) != 3 or x.kind == "codes":
            raise GencliError(
                f"network pixel-transformer tells images, whose values have an order, got {x.kind} of shape {x.shape}",
                "choose image data, or --net transformer",
            )
        if config.tied:
            raise GencliError("network pixel-transformer has no row of a table for an output", "leave --net.tied out")
        self.mixtures, self.depth_of_pixel = config.mixtures, x.shape[0]
        super().__init__(config, dataclasses.replace(x, shape=x.shape[1:]), vocab, cond)
        self.register_buffer("rows_of_channels", torch.arange(self.depth_of_pixel) * vocab, persistent=False)
        order = self.order[:, None] + torch.arange(self.depth_of_pixel) * self.order.numel()
        self.register_buffer("order", order.flatten(), persistent=False)
        self.register_buffer("places", self.order.argsort(), persistent=False)

    def _rows(self) -> int:
        return self.depth_of_pixel * self.vocab

    def _outputs(self) -> int:
        return numbers(self.depth_of_pixel) * self.mixtures

    def _sequence(self, tokens: Tensor) -> Tensor:
        """Pixels in the order of reading `(N, P, C)`."""
        return tokens.flatten(1)[:, self.order].unflatten(1, (-1, self.depth_of_pixel))

    def _read(self, tokens: Tensor, where: slice) -> Tensor:
        rows: Any = self.rows_of_channels
        return self.table(tokens + rows).sum(-2)

    def forward(  # type: ignore[override]  # no condition is called raw
        self, tokens: Tensor, *, ordered: bool = False, raw: bool = False, **cond: Tensor
    ) -> Tensor:
        """Logits `(N, *x.shape, V)` of tokens `(N, *x.shape)`, each from earlier tokens only; `ordered`: `(N, T, V)`.

        `raw` is for `log_prob`: what the last layer says of each pixel in the order of reading `(N, P, M)`.
        """
        channels, length = self.depth_of_pixel, tokens.flatten(1).shape[1]
        if ordered:
            pixels = F.pad(tokens, (0, -length % channels)).unflatten(1, (-1, channels))
        else:
            pixels = self._sequence(tokens)
        said = self.head(self.norm(self._through(pixels, cond, len(self.blocks))))
        if raw:
            return said
        with core.full_precision(said.device):
            mixture = self._mixture(said)
            logits = torch.stack([mixture.logits(pixels[..., :c]) for c in range(channels)], dim=2).flatten(1, 2)
        return logits[:, :length] if ordered else logits[:, self.places].view(*tokens.shape, self.vocab)

    def log_prob(self, said: Tensor, tokens: Tensor) -> Tensor:
        """log p `(N,)` of tokens `(N, *x.shape)`, from the last layer's numbers: no logits of all values are made."""
        with core.full_precision(said.device):
            return self._mixture(said).log_prob(self._sequence(tokens)).sum(1)

    def _mixture(self, said: Tensor) -> LogisticMixture:
        return LogisticMixture.of(said, self.depth_of_pixel, self.vocab)

    def start(self, n: int, **cond: Tensor) -> Any:
        """The state before the first token."""
        inner = super().start(n, **cond)
        return Told(inner, (), inner.prefix.new_zeros(n, 0))

    def next(self, token: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Logits `(N, V)` of the next token in the order of reading, and the new state."""
        pixel = state.pixel if token is None else (*state.pixel, token)
        inner, said = state.inner, state.said
        if token is None or len(pixel) == self.depth_of_pixel:  # the mixture is that of all channels of the next pixel
            said, inner = self._next(torch.stack(pixel, dim=1)[:, None] if pixel else None, inner)
            pixel = ()
        earlier = torch.stack(pixel, dim=1) if pixel else torch.zeros_like(said[:, :0], dtype=torch.long)
        return self._mixture(said).logits(earlier), Told(inner, pixel, said)
