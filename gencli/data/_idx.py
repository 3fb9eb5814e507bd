"""The IDX format of MNIST and its relatives, and the data sets that are four IDX files."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from gencli.config import opt
from gencli.core import Field, Spec
from gencli.data._base import Data, Split
from gencli.data._download import Remote, located, obtain
from gencli.data._resize import resize
from gencli.errors import GencliError

_BYTES = 0x08  # the only element type these sets use: unsigned byte


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array of an IDX file, gzipped or plain.

    Raises:
        GencliError: the file is damaged, with its name and what is wrong.
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, str(error)) from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] != _BYTES:
        raise _damaged(path, "not an IDX file of bytes")
    start = 4 + 4 * raw[3]
    shape = tuple(np.frombuffer(raw[4:start], ">u4").astype(int)) if len(raw) >= start else ()
    if not shape or len(raw) - start != np.prod(shape):
        raise _damaged(path, f"{len(raw) - start} bytes of items, its header says {'×'.join(map(str, shape)) or '?'}")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _damaged(path: Path, why: str) -> GencliError:
    return GencliError(f"{path} is damaged: {why}", "delete it and run the command again")


class IdxData(Data):
    """A base for sets of grey 28×28 images in ten classes: subclasses say where their four files are."""

    @dataclass(frozen=True)
    class Config:
        image_size: int = opt(0, "side in pixels; 0 is the native 28, others are resized (bicubic)", low=0, high=1024)
        unconditional: bool = opt(False, "leave the class labels out")

    names: ClassVar[tuple[str, ...]]
    files: ClassVar[tuple[Remote, Remote, Remote, Remote]]  # train images, train labels, test images, test labels
    folders: ClassVar[tuple[Path, ...]] = ()
    advice: ClassVar[str]

    @property
    def spec(self) -> Spec:
        size = self.config.image_size or 28
        label = Field("label", (), vocab=len(self.names), names=self.names)
        return Spec(Field("image", (1, size, size), vocab=256), {} if self.config.unconditional else {"label": label})

    def here(self) -> bool:
        return len(located(self.name, self.files, self.folders)) == len(self.files)

    def load(self) -> dict[str, Split]:
        paths = obtain(self.name, self.files, self.folders, self.advice, self.progress)
        train_x, train_y, test_x, test_y = (paths[file.name] for file in self.files)
        return {"train": self._split("train", train_x, train_y), "test": self._split("test", test_x, test_y)}

    def _split(self, name: str, images: Path, labels: Path) -> Split:
        x, y = read_idx(images), read_idx(labels)
        if x.ndim != 3 or y.shape != (len(x),):
            raise _damaged(images, f"shape {x.shape} does not go with {y.shape} labels in {labels.name}")
        if len(y) and y.max() >= len(self.names):
            raise _damaged(labels, f"label {y.max()} of {len(self.names)} classes")
        cond = {} if self.config.unconditional else {"label": torch.from_numpy(y.astype(np.int64))}
        size = self.config.image_size or 28
        return Split(resize(x[:, None], size), cond, [f"{self.name}/{name}/{i}" for i in range(len(x))])
