"""The Unreasonable Effectiveness of Deep Features as a Perceptual Metric (Zhang et al., 2018). arXiv:1801.03924

Offers: distance

    d(a, b) = Σ_l mean over places of w_l · (f_l(a) − f_l(b))²,   f_l of length one over channels at every place

with f_l the features of VGG-16 after its last relu at each of five resolutions, and learned weights w_l ≥ 0 of channels.
14,714,688 parameters of VGG-16 and 1,472 weights.

`read` takes the tensors of the released network from a safetensors file: VGG-16's convolutions as `features.INDEX` or
`sliceK.INDEX`, the weights as `linK.model.1`, after any prefix (the state of the package `lpips`, or of VQGAN's loss).

Shapes: a and b `(N, 1 or 3, H, W)` in [−1, 1], sides of 16 or more; output `(N,)`.

Raises GencliError for a file that does not hold these tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gencli.bundle import read_tensors
from gencli.config import Component
from gencli.errors import GencliError

WIDTHS = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
CONV = re.compile(r"(?:^|\.)(?:slice\d|features)\.(\d+)\.(weight|bias)$")
MIX = re.compile(r"(?:^|\.)lin(\d)\.model\.1\.weight$")


class Lpips(nn.Module, Component):
    """How far apart two images are to the eye."""

    role: ClassVar[str] = "distance"
    shift: Tensor
    scale: Tensor

    def __init__(self, config: Any = None) -> None:
        nn.Module.__init__(self)
        self.config = config
        self.stages = nn.ModuleList()
        here = 3
        for widths in WIDTHS:
            layers: list[nn.Module] = []
            for width in widths:
                layers += [nn.Conv2d(here, width, 3, padding=1), nn.ReLU()]
                here = width
            self.stages.append(nn.Sequential(*layers))
        self.weights = nn.ParameterList(torch.ones(widths[-1]) for widths in WIDTHS)
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None], persistent=False)

    @classmethod
    def read(cls, path: Path) -> Self:
        """The network with the weights in a safetensors file."""
        state = renamed(read_tensors(path)[0])
        with torch.device("cpu"):
            net = cls()
        own = net.state_dict()
        lost = [key for key, value in own.items() if key not in state or state[key].shape != value.shape]
        if lost:
            raise GencliError(
                f"{path} holds no LPIPS of VGG-16: {len(lost)} of {len(own)} tensors are missing, first '{lost[0]}'",
                "give a safetensors file of VGG-16's convolutions and the five lin layers of the package lpips",
            )
        net.load_state_dict(state)
        return net

    def features(self, x: Tensor) -> list[Tensor]:
        """Features of unit length at the five resolutions, from images in [−1, 1]."""
        made = []
        h = (x - self.shift) / self.scale
        for i, stage in enumerate(self.stages):
            h = stage(F.max_pool2d(h, 2) if i else h)
            made.append(unit(h.float()))
        return made

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        pairs = zip(self.weights, self.features(a), self.features(b), strict=True)
        each = [((one - two).square() * w[:, None, None]).sum(1).mean((1, 2)) for w, one, two in pairs]
        return torch.stack(each).sum(0)


def unit(h: Tensor) -> Tensor:
    """`(N, C, H, W)` of length one over channels."""
    return h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10)


def renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Released tensors under our names."""
    places: dict[int, str] = {}
    index = 0
    for stage, widths in enumerate(WIDTHS):
        for layer in range(len(widths)):
            places[index] = f"stages.{stage}.{2 * layer}"
            index += 2
        index += 1  # the pooling
    made = {}
    for key, value in tensors.items():
        if (conv := CONV.search(key)) and int(conv[1]) in places:
            made[f"{places[int(conv[1])]}.{conv[2]}"] = value.float()
        elif mix := MIX.search(key):
            made[f"weights.{mix[1]}"] = value.float().flatten()
    return made
