"""A data set's codes, computed once by a learned codec and kept on disk under a key of the data and the codec's weights."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from gencli import files
from gencli.bundle import Run
from gencli.core import Batch, Items, mix
from gencli.home import home

CHUNK = 256


@dataclass
class Encoded:
    """Items to which only the random part of the codecs is left to do."""

    tensors: dict[str, Tensor]
    encoded: bool = True

    def __len__(self) -> int:
        return len(self.tensors["x"])

    def batch(self, indices: Tensor) -> Batch:
        """The encoded items at `indices` and their conditions."""
        return {key: value[indices] for key, value in self.tensors.items()}


def encoded(run: Run, items: Items, data_hash: str) -> Encoded:
    """`items` through the deterministic part of the run's learned codec, from the cache where it has them."""
    (learned,) = run.codecs
    level = [one] if (one := learned.config.level) else []  # type: ignore[attr-defined]
    key = f"{mix(data_hash, len(items), learned.run.weights_hash(), *level):016x}"  # type: ignore[attr-defined]
    path = home() / "cache" / "codes" / f"{key}.safetensors"
    with contextlib.suppress(OSError, SafetensorError):  # absent, or damaged and made again
        return Encoded(load_file(path))
    parts = [learned.encode(items.batch(chunk)) for chunk in torch.arange(len(items)).split(CHUNK)]
    whole = {name: torch.cat([part[name] for part in parts]).cpu().contiguous() for name in parts[0]}
    files.atomic_write(path, save(whole))
    return Encoded(load_file(path))
