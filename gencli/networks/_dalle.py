"""What the two networks of DALL-E's discrete autoencoder share: bottleneck blocks on weighted residual paths.

    y = shortcut(x) + f(x) / n²,   n = blocks in the whole network,   f = four times conv(relu(·)) of a quarter of the width

Weights start from N(0, 1 / fan-in), biases from 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from gencli.config import opt


@dataclass(frozen=True)
class DalleSettings:
    """Settings of the encoder and of the decoder, which have to agree."""

    width: int = opt(256, "feature maps at the largest side, doubled at each halving", low=4)
    groups: int = opt(4, "sides at which there are blocks; one fewer halvings", low=1, high=8)
    blocks: int = opt(2, "blocks at each side", low=1)


class Block(nn.Module):
    """Four convolutions with the given kernels, the last one back to the full width."""

    def __init__(self, channels: int, width: int, kernels: Sequence[int], gain: float) -> None:
        super().__init__()
        self.gain = gain
        inner = max(width // 4, 1)
        layers: list[nn.Module] = []
        here = channels
        for i, kernel in enumerate(kernels):
            wide = width if i == len(kernels) - 1 else inner
            layers += [nn.ReLU(), conv(here, wide, kernel)]
            here = wide
        self.body = nn.Sequential(*layers)
        self.shortcut = conv(channels, width, 1) if channels != width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.gain * self.body(x)


def conv(channels: int, width: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the sides, started as the released ones."""
    layer = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
    nn.init.normal_(layer.weight, std=(channels * kernel**2) ** -0.5)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def path(
    channels: int, widths: Sequence[int], blocks: int, kernels: Sequence[int], between: nn.Module
) -> list[nn.Module]:
    """Blocks of each width in turn, with `between` from one to the next."""
    gain = 1 / (len(widths) * blocks) ** 2
    layers: list[nn.Module] = []
    here = channels
    for i, width in enumerate(widths):
        layers += [between] if i else []
        for _ in range(blocks):
            layers.append(Block(here, width, kernels, gain))
            here = width
    return layers
