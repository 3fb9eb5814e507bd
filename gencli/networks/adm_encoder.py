"""Diffusion Models Beat GANs on Image Synthesis (Dhariwal & Nichol, 2021). arXiv:2105.05233

Offers: class-logits

The contracting half of ADM's U-Net with an attention pool at the end, by which the paper classifies noisy images:

    logits = Linear(attention(query = mean token, keys and values = mean token and all pixels of the bottom))

with a learned position added to each token. Its gradient guides a denoiser.

The defaults are ImageNet 64×64: 65,438,568 parameters for 1,000 classes. At 128 (mults 1,1,2,3,4) and 256 (1,1,2,2,4,4) there
are 2 blocks a level: 42,568,040 and 54,096,360.

Ours: norms with fewer groups in narrow networks, as in `adm`.

Shapes: x `(N, C, H, W)` of the size it was made for; level `(N,)`, whatever number the model tells; output `(N, classes)`.

Errors: x that is no image, a side that is not divisible by 2^(levels − 1), channels that heads do not divide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import Component, opt
from gencli.core import Field
from gencli.networks._adm_path import AdmSettings, ContractingPath
from gencli.networks._resample_blocks import norm
from gencli.nn.attention import attend


class AdmEncoder(nn.Module, Component):
    """A classifier of noisy images."""

    role: ClassVar[str] = "classify"

    @dataclass(frozen=True)
    class Config(AdmSettings):
        """As in `adm`, narrower and with more blocks."""

        width: int = opt(128, "channels that the multiples are of; the level's embedding has four times as many", low=4)
        blocks: int = opt(4, "residual blocks a level", low=1)

    def __init__(self, config: Config, x: Field, classes: int) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.path = path = ContractingPath(config, x, "adm-encoder")
        bottom = path.kept[-1]
        self.norm_out = norm(bottom, path.style.eps)
        pixels = (x.shape[1] // path.stride) * (x.shape[2] // path.stride)
        self.pool = _AttentionPool(bottom, path.attention(bottom).heads, pixels, classes)

    @property
    def stride(self) -> int:
        """What both sides of x must be divisible by."""
        return self.path.stride

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Class logits `(N, classes)` for x at the levels `(N,)`."""
        embedded = F.silu(self.path.level(level)).to(x.dtype)
        h = self.path.bottom(self.path.contract(x, embedded)[-1], embedded)
        return self.pool(F.silu(self.norm_out(h)))


class _AttentionPool(nn.Module):
    """One vector from a feature map: what its mean attends to."""

    def __init__(self, width: int, heads: int, pixels: int, out: int) -> None:
        super().__init__()
        self.heads = heads
        self.positions = nn.Parameter(torch.empty(pixels + 1, width))
        nn.init.normal_(self.positions, std=width**-0.5)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, out)

    def forward(self, h: Tensor) -> Tensor:
        h = h.flatten(2).transpose(1, 2)  # (N, H·W, C)
        n, pixels, width = h.shape
        expected = len(self.positions) - 1
        assert pixels == expected, f"a classifier of feature maps of {expected} pixels, got {pixels}"
        tokens = torch.cat([h.mean(1, keepdim=True), h], dim=1) + self.positions.to(h.dtype)
        q, k, v = self.qkv(tokens).reshape(n, pixels + 1, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(attend(q[:, :, :1], k, v).reshape(n, width))
