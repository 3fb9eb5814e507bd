"""The contracting path of ADM's U-Net, which its noisy classifier is made of too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._resample_blocks import ResBlock, SelfAttention, Stage, Style, Way, check_image, level_widths
from gencli.networks.unet import channels_last, upsampled
from gencli.nn.embed import sinusoidal


@dataclass(frozen=True)
class AdmSettings:
    """The settings that the network and the classifier share."""

    width: int = opt(192, "channels that the multiples are of; the level's embedding has four times as many", low=4)
    mults: tuple[float, ...] = opt(
        (1, 2, 3, 4), "channels of each level as multiples of the width; each level halves the side"
    )
    blocks: int = opt(3, "residual blocks a level", low=1)
    attention: tuple[int, ...] = opt((32, 16, 8), "sides of the feature maps that get attention")
    heads: int = opt(4, "attention heads, where head-width is 0", low=1)
    head_width: int = opt(64, "channels of an attention head; 0 = as many heads everywhere", low=0)
    resample: Literal["block", "conv", "pool"] = opt(
        "block", "what changes the side: residual blocks, 3×3 convolutions, or only pooling and repeating"
    )
    scale_shift: bool = opt(True, "the level scales and shifts the second norm of a block; off = it is added before it")
    dropout: float = opt(0.0, "dropout in residual blocks", low=0, high=1)


class ContractingPath(nn.Module):
    """The embedding of the level, the features at every resolution, and the bottom."""

    def __init__(self, config: AdmSettings, x: Field, network: str) -> None:
        super().__init__()
        self.config, self.network = config, network
        self.widths = level_widths(network, config.width, config.mults)
        check_image(network, x, self.stride)
        embedding = 4 * config.width
        self.style = Style(embedding, config.dropout, config.scale_shift)
        self.time = nn.Sequential(nn.Linear(config.width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        channels = self.widths[0]
        self.conv_in = nn.Conv2d(x.shape[0], channels, 3, padding=1)
        self.kept, self.down = [channels], nn.ModuleList()
        for i, wide in enumerate(self.widths):
            for _ in range(config.blocks):
                self.down.append(Stage(ResBlock(channels, wide, self.style), self.look(wide, x.shape[1] // 2**i)))
                channels = wide
                self.kept.append(channels)
            if i < len(self.widths) - 1:
                self.down.append(self.resampler("down", channels))
                self.kept.append(channels)
        first, second = (ResBlock(channels, channels, self.style) for _ in range(2))
        self.middle = nn.ModuleList([Stage(first, self.attention(channels)), second])

    @property
    def stride(self) -> int:
        """What both sides of x must be divisible by."""
        return 2 ** (len(self.config.mults) - 1)

    def look(self, width: int, side: int) -> SelfAttention | None:
        """Attention, if feature maps of that side get it."""
        return self.attention(width) if side in self.config.attention else None

    def attention(self, width: int) -> SelfAttention:
        """Attention with the heads that the settings ask for."""
        config = self.config
        heads = config.heads if not config.head_width else max(width // config.head_width, 1)
        if width % heads or (config.head_width and width % config.head_width):
            each = f"head-width {config.head_width}" if config.head_width else f"{heads} heads"
            raise GencliError(
                f"network {self.network}: a level of {width} channels is not divisible by {each}",
                f"choose another --net.{'head-width' if config.head_width else 'heads'} or --net.width",
            )
        return SelfAttention(width, heads)

    def resampler(self, way: Way, channels: int) -> nn.Module:
        """What leads from one resolution to the next."""
        if self.config.resample == "block":
            return ResBlock(channels, channels, self.style, way)
        return _Plain(way, channels, self.config.resample == "conv")

    def level(self, level: Tensor, augment: Tensor | None = None) -> Tensor:
        """`(N,)` to `(N, 4 · width)`; `augment` is added to the sines and cosines."""
        h = sinusoidal(level, self.config.width, order="cos", endpoint=False).to(self.conv_in.weight.dtype)
        return self.time(h if augment is None else h + augment)

    def contract(self, x: Tensor, embedded: Tensor, hint: Tensor | None = None) -> list[Tensor]:
        """Every feature map that an expanding path may use, from the first, to which a hint is added, to the last."""
        start = channels_last(self.conv_in(x))
        features = [start if hint is None else start + hint]
        for stage in self.down:
            features.append(stage(features[-1], embedded))
        return features

    def bottom(self, h: Tensor, embedded: Tensor) -> Tensor:
        """What is done between the two paths."""
        for stage in self.middle:
            h = stage(h, embedded)
        return h


class _Plain(nn.Module):
    """Half or twice the side without a residual block."""

    def __init__(self, way: Way, channels: int, learned: bool) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(channels, channels, 3, 2 if way == "down" else 1, padding=1) if learned else None

    def forward(self, h: Tensor, embedded: Tensor) -> Tensor:
        if self.way == "up":
            return F.interpolate(h, scale_factor=2, mode="nearest") if self.conv is None else upsampled(h, self.conv)
        return F.avg_pool2d(h, 2) if self.conv is None else self.conv(h)
