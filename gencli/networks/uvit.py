"""All are Worth Words: A ViT Backbone for Diffusion Models (Bao et al., 2022). arXiv:2209.12152

Offers: denoise

A transformer in which everything is a token: the class, the level, and the patches, in this order, each with a learned
position. Of its depth + 1 blocks, each of the last depth / 2 first takes a long skip from the block opposite, last made
first used:

    h ← Linear([h, kept]);   h ← h + attention(norm(h));   h ← h + perceptron(norm(h))

The level's token is its sines and cosines themselves. After the last norm the patches are decoded by a linear layer and
smoothed by a 3×3 convolution. Weights start truncated normal of std 0.02, the class embedding standard normal.

S/2 is patch 2, width 512, depth 12, heads 8: 44,255,328 parameters on 3×32×32; L/2 on 4×32×32 latents with 1,000
classes (and one row for "no class") is width 1024, depth 20, heads 16: 286,763,172; H/2 is width 1152, depth 28, heads
16, no convolution: 500,832,016. A patch may be as small as attention can afford, for long skips, not depth, carry the
details.

Ours: `patch` 0 takes the smallest patch that divides both sides and leaves at most 64 tokens; a network without classes
has no class token.

Shapes: x `(N, C, H, W)` with H and W divisible by the patch; level `(N,)`; output `(N, out, H, W)`. `residuals` are
added to the depth / 2 kept features in the order they are made, the last of depth / 2 + 1 to the middle's output.

Errors: x that is no image, a side that the patch does not divide, a width that the heads do not divide, an odd depth, a
condition that is not a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.dit import smallest_patch, unpatchify
from gencli.nn.attention import attend
from gencli.nn.embed import LabelEmbedding, label_field, sinusoidal
from gencli.nn.sides import check_sides


class UViT(nn.Module, Component):
    """A transformer over patches with long skips."""

    role: ClassVar[str] = "denoise"

    @dataclass(frozen=True)
    class Config:
        patch: int = opt(0, "side of a patch; 0 = the smallest that leaves at most 64 tokens", low=0)
        width: int = opt(192, "width of a token", low=2)
        depth: int = opt(6, "blocks besides the middle one; even", low=2)
        heads: int = opt(3, "attention heads", low=1)
        mlp: float = opt(4.0, "width of the perceptron as a multiple of the token's", low=0.1)
        qkv_bias: bool = opt(False, "biases of queries, keys and values")
        conv: bool = opt(True, "smooth the decoded patches by a 3×3 convolution")

    def __init__(self, config: Config, x: Field, out: int, cond: Mapping[str, Field]) -> None:
        nn.Module.__init__(self)
        self.config, self.out = config, out
        _check(config, x)
        height, side = x.shape[1:]
        self.stride = config.patch or smallest_patch(height, side)
        check_sides(height, side, self.stride, "another --net.patch")
        label, width, patch = label_field(cond, "uvit"), config.width, self.stride
        tokens = (height // patch) * (side // patch)
        self.patches = nn.Conv2d(x.shape[0], width, patch, patch)
        self.label = LabelEmbedding(label, width, std=1.0) if label else None
        self.positions = nn.Parameter(torch.empty(tokens + (2 if label else 1), width))
        self.down = nn.ModuleList(_Block(config) for _ in range(config.depth // 2))
        self.middle = _Block(config)
        self.up = nn.ModuleList(_Block(config, skips=True) for _ in range(config.depth // 2))
        self.norm, self.last = nn.LayerNorm(width), nn.Linear(width, patch * patch * out)
        self.conv = nn.Conv2d(out, out, 3, padding=1) if config.conv else nn.Identity()
        self._initialise()

    def _initialise(self) -> None:
        nn.init.trunc_normal_(self.positions, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor, level: Tensor, residuals: Sequence[Tensor] | None = None, **cond: Tensor) -> Tensor:
        """The network's output `(N, out, H, W)` for x at the levels `(N,)`."""
        h = self._tokens(x, level, cond)
        features = []
        for block in self.down:
            h = block(h)
            features.append(h)
        h = self.middle(h)
        if residuals is not None:
            assert len(residuals) == len(features) + 1, f"{len(features) + 1} residuals, got {len(residuals)}"
            features = [kept + more for kept, more in zip(features, residuals, strict=False)]
            h = h + residuals[-1]
        for block in self.up:
            h = block(h, features.pop())
        rows, columns = x.shape[-2] // self.stride, x.shape[-1] // self.stride
        patches = self.last(self.norm(h[:, -rows * columns :]))
        return self.conv(unpatchify(patches, self.out, rows, columns))

    def _tokens(self, x: Tensor, level: Tensor, cond: Mapping[str, Tensor]) -> Tensor:
        """`(N, tokens, width)`: class, level, patches."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        time = sinusoidal(level, self.config.width, order="cos", endpoint=False).to(patches.dtype)
        first = [] if self.label is None else [self.label(cond["label"])[:, None].to(patches.dtype)]
        h = torch.cat([*first, time[:, None], patches], dim=1)
        assert h.shape[1] == len(self.positions), f"a transformer for {len(self.positions)} tokens, got {h.shape[1]}"
        return h + self.positions


class _Block(nn.Module):
    """Attention and a perceptron, before them perhaps a long skip."""

    def __init__(self, config: UViT.Config, skips: bool = False) -> None:
        super().__init__()
        width, inner = config.width, int(config.width * config.mlp)
        self.heads = config.heads
        self.skip = nn.Linear(2 * width, width) if skips else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=config.qkv_bias), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, h: Tensor, kept: Tensor | None = None) -> Tensor:
        if self.skip is not None:
            assert kept is not None, "this block takes a long skip"
            h = self.skip(torch.cat([h, kept], dim=-1))
        h = h + self._attention(self.norm1(h))
        return h + self.down(F.gelu(self.up(self.norm2(h))))

    def _attention(self, h: Tensor) -> Tensor:
        n, tokens, width = h.shape
        q, k, v = self.qkv(h).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # (N, heads, tokens, D) each
        return self.proj(attend(q, k, v).transpose(1, 2).reshape(n, tokens, width))


def _check(config: UViT.Config, x: Field) -> None:
    if len(x.shape) != 3:
        raise GencliError(
            f"network uvit needs images (channels, height, width), the data are {x.kind} of shape {x.shape}",
            "choose another network with --net",
        )
    if config.width % config.heads:
        raise GencliError(
            f"network uvit: width {config.width} is not divisible by {config.heads} heads",
            "heads of size 64 are fastest: --net.width 192 --net.heads 3",
        )
    if config.depth % 2:
        raise GencliError(
            f"network uvit: depth {config.depth} is odd, but every block down has one up",
            f"use --net.depth {config.depth - 1} or {config.depth + 1}",
        )
