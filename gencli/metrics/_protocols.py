"""Conventions by which images become Inception's input: each paper's FID is a number of one of them only.

| name | resize to 299×299 | scale | samples rounded | N | reference |
|---|---|---|---|---|---|
| `clean` | Pillow's bicubic on floats, antialiased, a channel at a time, cut to [0, 255] | (x − 128) / 128 | | | |
| `legacy-tf` | TensorFlow 1's bilinear: no antialias, corner at the origin | (x − 128) / 128 | | 50,000 | train |
| `legacy-pytorch` | torch's bilinear: no antialias, half-pixel centres | x / 127.5 − 1 | | | |
| `adm` | as `legacy-tf` | (x − 128) / 128 | truncated | 50,000 | train |
| `edm` | as `legacy-tf` | (x − 128) / 128 | to the nearest | 50,000 | train |

Facts: clean-fid (Parmar et al., 2022; arXiv:2104.11222), TTUR, pytorch-fid, guided-diffusion's `evaluator.py`, EDM's `fid.py`.
Nothing is rounded again after resizing. Ours: one file of weights, TensorFlow's of 2015, serves all; pytorch-fid's are the
same numbers in another file. Statistics that a paper publishes instead of images are not read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from gencli import registry

SIDE = 299


@dataclass(frozen=True)
class Protocol:
    """One convention.

    Args:
        name: after `--protocol`.
        resize: uint8 `(N, C, H, W)` to float32 `(N, C, 299, 299)` in [0, 255].
        half: what is subtracted, then divided by.
        words: the preprocessing, for receipts.
        n: number of samples that its numbers are of; None where it has no rule.
        split: of the reference; None where it has no rule.
        rounding: how its samples became uint8; empty where it has no rule.
    """

    name: str
    resize: Callable[[Tensor], Tensor]
    half: float
    words: str
    n: int | None = None
    split: str | None = None
    rounding: str = ""

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input `(N, 3, 299, 299)` from uint8 `(N, 1 or 3, H, W)`."""
        x = (self.resize(images) - self.half) / self.half
        return x.expand(-1, 3, -1, -1).contiguous()

    def deviations(self, n: int, split: str, rounding: str = "") -> list[str]:
        """Where an evaluation leaves the convention's rules, a few words each; an unknown rounding is no deviation."""
        made = [f"N {n:,}, not {self.n:,}"] if self.n not in (None, n) else []
        made += [f"{split} split, not {self.split}"] if self.split not in (None, split) else []
        made += [f"rounded {rounding}, not {self.rounding}"] if rounding and self.rounding not in ("", rounding) else []
        return made


def clean(images: Tensor) -> Tensor:
    """Pillow's bicubic filter on each channel as floats, cut to [0, 255]."""
    from PIL import Image

    def one(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize((SIDE, SIDE), Image.Resampling.BICUBIC))

    planes = images.cpu().numpy().astype(np.float32).reshape(-1, *images.shape[2:])
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # Pillow lets go of the interpreter
        resized = np.stack(list(pool.map(one, planes)))
    return torch.from_numpy(resized.clip(0, 255).reshape(*images.shape[:2], SIDE, SIDE))


def tensorflow(images: Tensor) -> Tensor:
    """Bilinear between the pixels around i·W/299, counted from the corner, as TensorFlow 1's `resize_bilinear`."""
    rows, columns = (_corners(size) for size in images.shape[2:])
    x = images.cpu().float()
    above, below = (x[:, :, index] for index in rows[:2])
    x = above + (below - above) * rows[2][:, None]
    left, right = (x[..., index] for index in columns[:2])
    return left + (right - left) * columns[2]


def _corners(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pixel before, the pixel after and the share of the latter at each of 299 places."""
    at = torch.arange(SIDE, dtype=torch.float32) * float(np.float32(size / SIDE))
    before = at.floor().long().clamp(max=size - 1)
    return before, (before + 1).clamp(max=size - 1), at - before


def pytorch(images: Tensor) -> Tensor:
    """torch's bilinear interpolation without antialias, pixels as areas."""
    return F.interpolate(images.cpu().float(), (SIDE, SIDE), mode="bilinear", align_corners=False).clamp(0, 255)


NEAREST = "to the nearest grey level"
TRUNCATED = "down to the grey level below"
_TF = "TensorFlow 1's bilinear without antialias to 299×299, (x − 128) / 128"
PROTOCOLS = {
    made.name: made
    for made in (
        Protocol("clean", clean, 128.0, "Pillow's antialiased bicubic on floats to 299×299, (x − 128) / 128"),
        Protocol("legacy-tf", tensorflow, 128.0, _TF, 50_000, "train"),
        Protocol("legacy-pytorch", pytorch, 127.5, "torch's bilinear without antialias to 299×299, x / 127.5 − 1"),
        Protocol("adm", tensorflow, 128.0, _TF, 50_000, "train", TRUNCATED),
        Protocol("edm", tensorflow, 128.0, _TF, 50_000, "train", NEAREST),
    )
}


def named(name: str) -> Protocol:
    """The convention called `name`."""
    if name not in PROTOCOLS:
        raise registry.unknown("protocol", name, PROTOCOLS, "gencli eval --help")
    return PROTOCOLS[name]
