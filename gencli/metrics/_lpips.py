"""The published weights of LPIPS: a network's convolutions from torchvision and the learned layers from the package `lpips`.

| network | convolutions, download.pytorch.org/models/ | layers, richzhang/PerceptualSimilarity, lpips/weights/v0.1/ |
|---|---|---|
| `alex` | `alexnet-owt-7be5be79.pth` | `alex.pth` |
| `vgg` | `vgg16-397923af.pth` | `vgg.pth` |

Both lie in one folder and are opened only if their sha256 are the published ones (torchvision puts the first eight digits
into the name). Other weights are given as one safetensors file that holds all tensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gencli.bundle import read_tensors
from gencli.errors import GencliError
from gencli.metrics._features import sha256_of
from gencli.networks.lpips import ALEX, VGG, Lpips


class Published(NamedTuple):
    """A file, the beginning of its sha256, and where it is published."""

    name: str
    sha256: str
    place: str


TORCH = "https://download.pytorch.org/models"
LINEAR = "https://github.com/richzhang/PerceptualSimilarity/tree/master/lpips/weights/v0.1"
TRUNKS = {"alex": ALEX, "vgg": VGG}
FILES = {
    "alex": (
        Published("alexnet-owt-7be5be79.pth", "7be5be79", TORCH),
        Published("alex.pth", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0", LINEAR),
    ),
    "vgg": (
        Published("vgg16-397923af.pth", "397923af", TORCH),
        Published("vgg.pth", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868", LINEAR),
    ),
}


def read(path: Path, network: str) -> tuple[Lpips, str]:
    """LPIPS by one of the networks, from a folder of the published files or a safetensors file, and the files' sha256.

    Raises:
        GencliError: files or tensors are missing, or files are not the published ones.
    """
    if path.is_file():
        return Lpips.of(read_tensors(path)[0], path, TRUNKS[network]), sha256_of(path)
    files = [(path / file.name, file) for file in FILES[network]]
    absent = [f"{file.name} (sha256 {file.sha256}…, {file.place})" for place, file in files if not place.is_file()]
    if absent:
        raise GencliError(
            f"no LPIPS weights in {path}: {' and '.join(absent)}",
            "put what is missing there, or name another folder with --reconstruction.lpips",
        )
    tensors: dict[str, Tensor] = {}
    for place, file in files:
        tensors |= opened(place, file)
    told = " + ".join(sha256_of(place) for place, _ in files)
    return Lpips.of(tensors, path, TRUNKS[network]), told


def opened(place: Path, file: Published) -> dict[str, Tensor]:
    """The tensors of a published file."""
    found = sha256_of(place)
    if not found.startswith(file.sha256):
        raise GencliError(
            f"{place} is not the published file: its sha256 is {found[:16]}…, not {file.sha256[:16]}…",
            f"copy it again from {file.place}, or give other weights as one safetensors file",
        )
    held: dict[str, Tensor] = torch.load(place, map_location="cpu", weights_only=True)
    return held
