"""Perceptual distances for reconstruction losses: LPIPS where its weights are given, else the bundled features.

    d(a, b) = mean over layers and places of |f_l(a) − f_l(b)|²,   f_l of length one over channels at every place

with f_l what the bundled classifier of small grey images (`feature-net`) makes at last at each of its four resolutions: LPIPS
without learned weights, by a network that fits the data of the laptop recipes. Its numbers are not LPIPS, so what is logged
bears the name of the network.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

import gencli
from gencli import registry
from gencli.bundle import read_tensors
from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.feature_net import canvas
from gencli.networks.lpips import Lpips

BUNDLED = Path(gencli.__file__).parent / "metrics" / "weights" / "gencli-features-v1.safetensors"


class Perceptual(nn.Module):
    """Images `(N, C, H, W)` in the range of `x`, twice, to their distances `(N,)`.

    Args:
        by: `gencli` for the bundled features, or the path of a safetensors file of LPIPS weights.
        x: what the images are.
    """

    def __init__(self, by: str, x: Field) -> None:
        super().__init__()
        if x.shape[0] not in (1, 3):
            raise GencliError(
                f"a perceptual loss takes images of 1 or 3 channels, these have {x.shape[0]}",
                "train without one: --perceptual-weight 0",
            )
        assert x.range is not None
        self.low, self.high = x.range
        self.net: nn.Module = bundled() if by == "gencli" else Lpips.read(Path(by))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = ((t.float() - self.low) / (self.high - self.low) for t in (a, b))  # in [0, 1]
        if isinstance(self.net, Lpips):
            return self.net(2 * a - 1, 2 * b - 1)
        pairs = zip(self.layers(a), self.layers(b), strict=True)
        return torch.stack([apart(one, two) for one, two in pairs]).mean(0)

    def layers(self, x: Tensor) -> list[Tensor]:
        """What the bundled network makes at last at each resolution."""
        body = self.net.body
        assert isinstance(body, nn.Sequential)
        h, made = (canvas(x) - 0.25) / 0.35, dict[int, Tensor]()
        for layer in body:
            h = layer(h)
            made[h.shape[-1]] = h  # the last of this side
        return [*made.values()]


def apart(a: Tensor, b: Tensor) -> Tensor:
    """Mean over places of the squared distance of vectors made unit ones, 2 − 2 cos of their angle `(N,)`."""
    a, b = a.float(), b.float()
    lengths = (a.square().sum(1) * b.square().sum(1)).clamp(min=1e-20).sqrt()
    return 2 - 2 * ((a * b).sum(1) / lengths).mean((1, 2))


def bundled() -> nn.Module:
    """The feature network that comes with gencli."""
    tensors, header = read_tensors(BUNDLED)
    with torch.device("cpu"):
        net: nn.Module = registry.load("networks", header["network"]).make(json.loads(header["settings"]))
    net.load_state_dict({key: value.float() for key, value in tensors.items()}, strict=False)  # no counts of batches
    return net.eval()
