"""What the programs in this folder share: real images with labels, and folders of samples."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gencli.data.digits import Digits
from gencli.errors import GencliError

FASHION = Path("/usr/share/datasets/fashion-mnist")  # where Debian's dataset-fashion-mnist puts it
FILES = {"train": "train", "test": "t10k"}

Labelled = tuple[Tensor, Tensor]
"""Images `(N, 1, H, W)` uint8 and labels `(N,)` int64."""


def digits(split: str, side: int = 16) -> Labelled:
    """The digits, as gencli trains on them."""
    part = Digits.make({"image_size": side}).split(split)
    return torch.from_numpy(part.x), part.cond["label"]


def fashion(split: str, folder: Path = FASHION) -> Labelled:
    """Fashion-MNIST from its four IDX files."""
    images = _idx(folder / f"{FILES[split]}-images-idx3-ubyte.gz", 16)
    labels = _idx(folder / f"{FILES[split]}-labels-idx1-ubyte.gz", 8)
    return images.view(-1, 1, 28, 28), labels.long()


def _idx(path: Path, header: int) -> Tensor:
    if not path.exists():
        raise GencliError(f"{path} is missing", "install Debian's dataset-fashion-mnist, or give --fashion FOLDER")
    raw = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)
    return torch.from_numpy(raw.copy())


def digest(*parts: Labelled) -> str:
    """A hash of images and labels."""
    made = hashlib.sha256()
    for images, labels in parts:
        made.update(f"{tuple(images.shape)}".encode() + images.numpy().tobytes() + labels.numpy().tobytes())
    return made.hexdigest()[:16]


def samples(folder: Path) -> Labelled:
    """The PNGs listed in `folder/samples.json` and the labels that were asked for (−1 where none was)."""
    from PIL import Image

    listing = folder / "samples.json"
    if not listing.exists():
        raise GencliError(f"{folder} has no samples.json", "give a folder written by `gencli sample`")
    items = json.loads(listing.read_text(encoding="utf-8"))["items"]
    images = np.stack([np.asarray(Image.open(folder / item["file"]).convert("L")) for item in items])
    labels = [-1 if item.get("label") is None else int(item["label"]) for item in items]
    return torch.from_numpy(images)[:, None], torch.tensor(labels)
