"""The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018). arXiv:1801.03924

Offers: distance

    d(a, b) = Σ_l mean over places of w_l · (f_l(a) − f_l(b))²,   f_l of length one over channels at every place

with learned weights w_l ≥ 0 of channels and f_l the features of one of two networks, which give different numbers:

    vgg    VGG-16 after its last relu at each of five resolutions; 14,714,688 parameters and 1,472 weights
    alex   AlexNet after each of its five relus; 2,469,696 parameters and 1,152 weights

`read` takes the tensors of the released network from a safetensors file: the convolutions as `features.INDEX` or
`sliceK.INDEX`, the weights as `linK.model.1`, after any prefix (the state of the package `lpips`, or of VQGAN's loss).

Shapes: a and b `(N, 1 or 3, H, W)` in [−1, 1], sides of 16 (alex: 31) or more; output `(N,)`.

Raises GencliError for a file that does not hold these tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.bundle import read_tensors
from gencli.config import Component
from gencli.errors import GencliError


@dataclass(frozen=True)
class Trunk:
    """A network of convolutions, each before a relu, whose last one of each stage is looked at.

    Args:
        name: for people.
        stages: the convolutions' width, kernel, stride and padding.
        pools: kernel of the pooling before each stage, of stride 2; 0 = none.
        least: pixels of the smallest side.
    """

    name: str
    stages: tuple[tuple[tuple[int, int, int, int], ...], ...]
    pools: tuple[int, ...]
    least: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each stage's features."""
        return tuple(convs[-1][0] for convs in self.stages)

    def places(self) -> dict[int, str]:
        """Our names of the convolutions by torchvision's index, which counts relus and poolings too."""
        made, index = {}, 0
        for stage, (convs, pool) in enumerate(zip(self.stages, self.pools, strict=True)):
            index += pool > 0
            for layer in range(len(convs)):
                made[index] = f"stages.{stage}.{2 * layer}"
                index += 2
        return made


VGG = Trunk(
    "VGG-16",
    tuple(((width, 3, 1, 1),) * count for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))),
    (0, 2, 2, 2, 2),
    16,
)
ALEX = Trunk(
    "AlexNet",
    (((64, 11, 4, 2),), ((192, 5, 1, 2),), ((384, 3, 1, 1),), ((256, 3, 1, 1),), ((256, 3, 1, 1),)),
    (0, 3, 3, 0, 0),
    31,
)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
CONV = re.compile(r"(?:^|\.)(?:slice\d|features)\.(\d+)\.(weight|bias)$")
MIX = re.compile(r"(?:^|\.)lin(\d)\.model\.1\.weight$")


class Lpips(nn.Module, Component):
    """How far apart two images are to the eye."""

    role: ClassVar[str] = "distance"
    shift: Tensor
    scale: Tensor

    def __init__(self, config: Any = None, trunk: Trunk = VGG) -> None:
        nn.Module.__init__(self)
        self.config, self.trunk = config, trunk
        self.stages = nn.ModuleList()
        here = 3
        for convs in trunk.stages:
            layers: list[nn.Module] = []
            for width, kernel, stride, padding in convs:
                layers += [nn.Conv2d(here, width, kernel, stride, padding), nn.ReLU()]
                here = width
            self.stages.append(nn.Sequential(*layers))
        self.weights = nn.ParameterList(torch.ones(width) for width in trunk.widths)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The network with the weights in a safetensors file."""
        return cls.of(read_tensors(path)[0], path)

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], path: Path, trunk: Trunk = VGG) -> Self:
        """The network with released weights, which came from a path.

        Raises:
            GencliError: tensors are missing, or have other shapes.
        """
        state = renamed(tensors, trunk)
        with torch.device("cpu"):
            net = cls(trunk=trunk)
        own = net.state_dict()
        lost = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
        if lost:
            raise GencliError(
                f"{path} holds no LPIPS of {trunk.name}: {len(lost)} of {len(own)} tensors are missing, first '{lost[0]}'",
                f"give a safetensors file of {trunk.name}'s convolutions and the five lin layers of the package lpips",
            )
        net.load_state_dict(state)
        return net

    def features(self, x: Tensor) -> list[Tensor]:
        """Features of unit length at the five resolutions, from images in [−1, 1]."""
        made = []
        h = (x - self.shift) / self.scale
        for pool, stage in zip(self.trunk.pools, self.stages, strict=True):
            h = stage(F.max_pool2d(h, pool, 2) if pool else h)
            made.append(unit(h.float()))
        return made

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.weights, self.features(a), self.features(b), strict=True)
        each = [((one - two).square() * w[:, None, None]).sum(1).mean((1, 2)) for w, one, two in pairs]
        return torch.stack(each).sum(0)


def unit(h: Tensor) -> Tensor:
    """`(N, C, H, W)` of length one over channels."""
    return h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)


def renamed(tensors: Mapping[str, Tensor], trunk: Trunk = VGG) -> dict[str, Tensor]:
    """Released tensors under our names."""
    places = trunk.places()
    made = {}
    for key, value in tensors.items():
        if (conv := CONV.search(key)) and int(conv[1]) in places:
            made[f"{places[int(conv[1])]}.{conv[2]}"] = value.float()
        elif mix := MIX.search(key):
            made[f"weights.{mix[1]}"] = value.float().flatten()
    return made
