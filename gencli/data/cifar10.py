"""CIFAR-10, from Learning Multiple Layers of Features from Tiny Images (Krizhevsky, 2009).

Offers: image, label

50,000 training and 10,000 test images, 32×32, colour, ten classes; the published split is kept. The binary version is
used, since the other one is a pickle. Read from the cache, else fetched once (170 MB).
"""

from __future__ import annotations

import tarfile
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

_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
_PARTS = {"train": tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test": ("test_batch.bin",)}


class Cifar10(Data):
    """The tiny images of Krizhevsky, Nair and Hinton."""

    @dataclass(frozen=True)
    class Config:
        image_size: int = opt(0, "side in pixels; 0 is the native 32, others are resized (bicubic)", low=0, high=1024)
        unconditional: bool = opt(False, "leave the class labels out")

    names: ClassVar[tuple[str, ...]] = (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    )
    # The digest is the md5sum on the authors' page, www.cs.toronto.edu/~kriz/cifar.html, for the binary version.
    file: ClassVar[Remote] = Remote(
        "cifar-10-binary.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
    )

    @property
    def spec(self) -> Spec:
        size = self.config.image_size or 32
        label = Field("label", (), vocab=len(self.names), names=self.names)
        return Spec(Field("image", (3, size, size), vocab=256), {} if self.config.unconditional else {"label": label})

    def here(self) -> bool:
        return bool(located(self.name, [self.file], []))

    def load(self) -> dict[str, Split]:
        advice = (
            f"put {self.file.name} from {self.file.url} in {{cache}}, or use --data digits, which needs no download"
        )
        path = obtain(self.name, [self.file], [], advice, self.progress)[self.file.name]
        raw = _read(path)
        return {name: self._split(name, b"".join(raw[part] for part in parts)) for name, parts in _PARTS.items()}

    def _split(self, name: str, raw: bytes) -> Split:
        records = np.frombuffer(raw, np.uint8).reshape(-1, _RECORD)
        x = records[:, 1:].reshape(-1, 3, 32, 32)
        cond = {} if self.config.unconditional else {"label": torch.from_numpy(records[:, 0].astype(np.int64))}
        ids = [f"cifar10/{name}/{i}" for i in range(len(x))]
        return Split(resize(x, self.config.image_size or 32), cond, ids)


def _read(path: Path) -> dict[str, bytes]:
    """The six files of records, by name; nothing is extracted to disk."""
    wanted = {part for parts in _PARTS.values() for part in parts}
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member) if Path(member.name).name in wanted else None
                if stream is not None:
                    found[Path(member.name).name] = stream.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise GencliError(f"{path} is damaged: {error}", "delete it and run the command again") from error
    bad = [name for name in sorted(wanted) if name not in found or len(found[name]) % _RECORD or not found[name]]
    if bad:
        raise GencliError(
            f"{path} is damaged: {bad[0]} is missing or not whole records", "delete it and run the command again"
        )
    return found
