"""Scalable Diffusion Models with Transformers (Peebles & Xie, 2022). arXiv:2212.09748

Offers: denoise

The image is cut into patches; each is a token with a fixed sine-cosine position. The embedded noise level and class, c,
set the layer norms of every block (adaLN-Zero):

    shift, scale, gate = Linear(swish(c)) for the attention and again for the perceptron
    h ← h + gate · f(norm(h) (1 + scale) + shift)

All these linear layers and the last one start at zero: every block is the identity and the output is 0 at the start.

DiT-XL/2 is patch 2, width 1152, depth 28, heads 16: 674,834,720 parameters on 4×32×32 latents with 1,000 classes and 8 output
channels, 675,129,632 with its fixed positions.

Ours: `patch` 0 takes the smallest patch that divides both sides and leaves at most 64 tokens; a network without classes has
no class embedding.

Shapes: x `(N, C, H, W)` with H and W divisible by the patch; level `(N,)`; output `(N, out, H, W)`. `residuals` are
added to the tokens after each of the first blocks.

Errors: x that is no image, a side that the patch does not divide, a width that the heads do not divide, a condition that is not
a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.nn.attention import attend
from gencli.nn.embed import LabelEmbedding, label_field, sincos_grid, sinusoidal
from gencli.nn.film import film
from gencli.nn.sides import check_sides

FREQUENCIES = 256
MOST_TOKENS = 64


class DiT(nn.Module, Component):
    """A transformer over patches with adaLN-Zero."""

    role: ClassVar[str] = "denoise"
    positions: Tensor  # (tokens, width)

    @dataclass(frozen=True)
    class Config:
        patch: int = opt(0, "side of a patch; 0 = the smallest that leaves at most 64 tokens", low=0)
        width: int = opt(192, "width of a token", low=4)
        depth: int = opt(6, "number of blocks", low=1)
        heads: int = opt(3, "attention heads", low=1)
        mlp: float = opt(4.0, "width of the perceptron as a multiple of the token's", low=0.1)
        dropout: float = opt(0.0, "dropout after attention and perceptron", low=0, high=1)

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config, self.out = config, out
        if len(x.shape) != 3:
            raise GencliError(
                f"network dit needs images (channels, height, width), the data are {x.kind} of shape {x.shape}",
                "choose another network with --net",
            )
        if config.width % config.heads or config.width % 4:
            raise GencliError(
                f"network dit: width {config.width} is not divisible by {config.heads} heads and by 4",
                "heads of size 64 are fastest: --net.width 192 --net.heads 3",
            )
        self.stride = config.patch or smallest_patch(*x.shape[1:])
        check_sides(*x.shape[1:], self.stride, "another --net.patch")
        label, width, patch = label_field(cond, "dit"), config.width, self.stride
        self.patches = nn.Conv2d(x.shape[0], width, patch, patch)
        positions = sincos_grid(width, x.shape[1] // patch, x.shape[2] // patch)
        self.register_buffer("positions", positions, persistent=False)
        self.time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = LabelEmbedding(label, width, std=0.02) if label else None
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.modulation = nn.Linear(width, 2 * width)
        self.last = nn.Linear(width, patch * patch * out)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(module.weight.flatten(1))
                assert module.bias is not None
                nn.init.zeros_(module.bias)
        for name, weight in self.named_parameters():
            if name in ("time.0.weight", "time.2.weight"):
                nn.init.normal_(weight, std=0.02)
            elif name.endswith("modulation.weight") or name == "last.weight":
                nn.init.zeros_(weight)

    def forward(self, x: Tensor, level: Tensor, residuals: Sequence[Tensor] | None = None, **cond: Tensor) -> Tensor:
        """The network's output `(N, out, H, W)` for x at the levels `(N,)`."""
        height, width = x.shape[-2] // self.stride, x.shape[-1] // self.stride
        assert height * width == len(self.positions), (
            f"a transformer for {len(self.positions)} tokens, got {height * width}"
        )
        h = self.patches(x).flatten(2).transpose(1, 2) + self.positions.to(x.dtype)  # (N, tokens, width)
        frequencies = sinusoidal(level, FREQUENCIES, order="cos", endpoint=False)
        c = self.time(frequencies.to(self.patches.weight.dtype))
        c = F.silu(c if self.label is None else c + self.label(cond["label"]))
        for i, block in enumerate(self.blocks):
            h = block(h, c)
            if residuals is not None and i < len(residuals):
                h = h + residuals[i]
        shift, scale = self.modulation(c).chunk(2, dim=-1)
        return unpatchify(self.last(_modulated(h, shift, scale)), self.out, height, width)


class _Block(nn.Module):
    """Attention and a perceptron, each shifted, scaled and gated by the embedded level and class."""

    def __init__(self, config: DiT.Config) -> None:
        super().__init__()
        width, inner = config.width, int(config.width * config.mlp)
        self.heads = config.heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)[:, None].chunk(6, dim=-1)
        h = h + gate_a * self.dropout(self._attention(_modulated(h, shift_a, scale_a)))
        inner = F.gelu(self.up(_modulated(h, shift_m, scale_m)), approximate="tanh")
        return h + gate_m * self.dropout(self.down(inner))

    def _attention(self, h: Tensor) -> Tensor:
        n, tokens, width = h.shape
        q, k, v = self.qkv(h).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (N, heads, tokens, D) each
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(n, tokens, width))


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return film(F.layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale, shift, dim=-1)


def unpatchify(tokens: Tensor, channels: int, rows: int, columns: int) -> Tensor:
    """`(N, rows·columns, p·p·channels)` to `(N, channels, rows·p, columns·p)`; a token holds its pixels channel last."""
    n, patch = tokens.shape[0], int((tokens.shape[-1] // channels) ** 0.5)
    grid = tokens.reshape(n, rows, columns, patch, patch, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(n, channels, rows * patch, columns * patch)


def smallest_patch(height: int, width: int) -> int:
    """The smallest patch that divides both sides and leaves at most 64 tokens, at least two a side."""
    for patch in range(1, max(2, min(height, width) // 2 + 1)):
        if height % patch == 0 and width % patch == 0 and (height // patch) * (width // patch) <= MOST_TOKENS:
            return patch
    side = min(height, width)
    raise GencliError(
        f"no patch cuts an image of {height}×{width} into at most {MOST_TOKENS} tokens",
        f"use --image-size {side // 8 * 8} or {-(-side // 8) * 8}, or set --net.patch",
    )
