"""Inception features of a folder of PNG files, against clean-fid on the same network.

The network is small, with random weights: what is measured is reading, decoding and resizing to 299×299, and that memory
does not grow with the folder. The published network takes the same input on both sides and would only add its own time.
"""

from __future__ import annotations

import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._frame import Case, Outcome, Side
from gencli.metrics._inception import FILE

IMAGES, SIDE, BATCH = 10_000, 32, 64


class Small(nn.Module):
    """299×299 pixels around 0 to features: what both sides call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 32, 16, 16), nn.Conv2d(32, 2048, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x))).mean((2, 3), keepdim=True)


class Published(nn.Module):
    """The layout of the published file."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = Small()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def cases(folder: Path, mini: bool) -> list[Case]:
    """One folder, made once."""
    count = 40 if mini else IMAGES
    images = folder / "images"
    if not images.exists():
        write(images, count)
        torch.jit.script(Published()).save(str(folder / FILE))
    name = f"features of {count:,} PNG files"
    return [Case(name, "clean-fid", partial(features, folder), 1 if mini else 2, apart)]


def write(folder: Path, count: int) -> None:
    """Smooth noise, so that files have a natural size."""
    from PIL import Image

    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(folder / f"{i:06d}.png")


def features(folder: Path, side: str) -> Side:
    """`(N, 2048)` by one side."""
    images, file = folder / "images", folder / FILE
    if side == "gencli":
        from gencli.evaluation.sources import Samples
        from gencli.metrics._inception import Inception

        by = Inception(file, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
        return lambda: Samples([images]).features(by).x
    from gencli.metrics._torchvision import import_torchvision

    import_torchvision()  # which clean-fid imports too
    from cleanfid.fid import get_folder_features
    from cleanfid.inception_torchscript import InceptionV3W

    network = InceptionV3W(str(folder), download=False)

    def theirs() -> np.ndarray:
        with torch.no_grad():
            return get_folder_features(
                str(images), network, num_workers=2, batch_size=BATCH, device="cpu", verbose=False
            )

    return theirs


def apart(ours: np.ndarray, theirs: np.ndarray) -> Outcome:
    """How far the features differ, relative to their size."""
    return {"relative difference of features": (float(np.abs(ours - theirs).max() / np.abs(theirs).max()), 1e-5)}
