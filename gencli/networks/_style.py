"""What the networks of the style-based GANs share: levels of sides, widths, and the mapping from a latent to a style.

    y = E one-hot(class),   w = f(norm z, norm y),   f fully connected layers with leaky relus, at 0.01 of the learning rate

norm divides by the root mean square. An image is halved while its sides are even and at least 8, to a coarsest grid of 4 to 7:
16 and 32 to 4, 28 to 7. Level l of the grid's doublings has min(base / (4·2ˡ), most) feature maps.

Raises GencliError for what is no image, and for sides that do not halve to a grid of 4 to 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.config import opt
from gencli.core import Field
from gencli.errors import GencliError
from gencli.nn.embed import label_field
from gencli.nn.equalised import EqualLinear, leaky, pixel_norm

RATE = 0.01  # of a mapping network's layers
COARSEST = 4


@dataclass(frozen=True)
class StyleSettings:
    """Settings of a generator with styles."""

    base: int = opt(16_384, "feature maps of a level times its side", low=4)
    most: int = opt(512, "feature maps of a level, at most", low=1)
    style: int = opt(512, "numbers in a style", low=1)
    mapping: int = opt(8, "layers from the latent to the style", low=1)


def grids(network: str, image: Field) -> list[tuple[int, int]]:
    """Heights and widths from the coarsest grid to the image."""
    if len(image.shape) != 3:
        raise GencliError(
            f"{network} works on images (channels, height, width), got {image.kind} of shape {image.shape}",
            "choose image data",
        )
    made = [(image.shape[1], image.shape[2])]
    while not made[0][0] % 2 and not made[0][1] % 2 and min(made[0]) >= 2 * COARSEST:
        made.insert(0, (made[0][0] // 2, made[0][1] // 2))
    if not COARSEST <= min(made[0]) < 2 * COARSEST:
        raise GencliError(
            f"network {network} cannot halve an image of {image.shape[1]}×{image.shape[2]} to a grid of 4 to 7",
            "use --image-size 16, 28 or 32, or another 4 to 7 times a power of two",
        )
    return made


def widths(levels: int, base: int, most: int) -> list[int]:
    """Feature maps of each level, from the coarsest."""
    return [max(min(base // (COARSEST * 2**level), most), 1) for level in range(levels)]


class ClassRow(nn.Module):
    """A class as a row of numbers: a linear layer of zeros and a one."""

    def __init__(self, label: Field, width: int) -> None:
        super().__init__()
        assert label.vocab is not None, "a label needs a vocab"
        self.classes = label.vocab
        self.linear = EqualLinear(label.vocab, width)

    def forward(self, label: Tensor) -> Tensor:
        return self.linear(F.one_hot(label, self.classes).to(self.linear.weight.dtype))


class StyleMapping(nn.Module):
    """A latent of `inputs` numbers (0: none), and a class, to `width` numbers."""

    def __init__(self, inputs: int, width: int, layers: int, label: Field | None) -> None:
        super().__init__()
        self.inputs = inputs
        self.row = ClassRow(label, width) if label else None
        first = inputs + (width if label else 0)
        self.layers = nn.ModuleList(EqualLinear(first if i == 0 else width, width, rate=RATE) for i in range(layers))

    def forward(self, z: Tensor | None, label: Tensor | None = None) -> Tensor:
        parts = [] if z is None else [pixel_norm(z)]
        if self.row is not None:
            assert label is not None, "a network that is told the class needs it"
            parts.append(pixel_norm(self.row(label)))
        h = torch.cat(parts, 1)
        for layer in self.layers:
            h = leaky(layer(h))
        return h


def class_of(cond: Mapping[str, Field] | None, network: str) -> Field | None:
    """The label among the conditions, other conditions refused."""
    return label_field(cond or {}, network)
