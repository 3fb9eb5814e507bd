"""What every data set is: uint8 items (or float points) at hand by index, conditions, a fixed split and a content hash."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from gencli.config import Component
from gencli.core import Batch, Spec
from gencli.errors import GencliError


@dataclass
class Split:
    """Items of one split: `x` is `(N, *spec.x.shape)`, uint8 for images, in memory or mapped from a file.

    Args:
        x: the items.
        cond: one tensor a condition, `(N, *field.shape)`.
        ids: a stable name for each item, for receipts and error messages.
        factors: what each item was made from, where that is known: whole numbers `(N,)` by the factor's name.
    """

    x: np.ndarray
    cond: Mapping[str, Tensor] = field(default_factory=dict)
    ids: list[str] | None = None
    factors: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor) -> Batch:
        """The items at `indices` and their conditions."""
        rows = np.ascontiguousarray(self.x[indices.numpy()])
        return {"x": torch.from_numpy(rows), **{key: value[indices] for key, value in self.cond.items()}}

    def only(self, keep: np.ndarray) -> Split:
        """The items at the indices `keep`."""
        ids = [self.ids[i] for i in keep] if self.ids is not None else None
        kept = torch.from_numpy(keep)
        cond, factors = ({key: value[kept] for key, value in part.items()} for part in (self.cond, self.factors))
        return Split(self.x[keep], cond, ids, factors)


class Data(Component):
    """A data set. A subclass declares `Config`, `spec_of` (which reads no file) and `load`, which returns its splits."""

    kind: ClassVar[str] = "image"

    def __init__(self, config: Any) -> None:
        self.config = config
        self.progress: Callable[[str, int, int], None] | None = None  # told what is done, how much of it, of how much
        self._splits: dict[str, Split] | None = None

    @abstractmethod
    def load(self) -> dict[str, Split]:
        """Read the items: `{"train": …, "test": …}`."""

    @property
    @abstractmethod
    def spec(self) -> Spec:
        """What an item is; for built-in sets this reads no file."""

    @property
    def name(self) -> str:
        """What the set is called in run names: lower case, letters, digits and hyphens."""
        return self.public_name()

    def here(self) -> bool:
        """Whether its items are on this machine; nothing is read or fetched."""
        return True

    @property
    def notes(self) -> list[str]:
        """What a user should be told about how the data were read: one line each."""
        return []

    @property
    def resampled(self) -> bool:
        """Whether the items are enlarged or reduced by default, so that their bits/dim would be about the resizing."""
        return False

    def split(self, name: str) -> Split:
        """The items of `train` or `test`."""
        if self._splits is None:
            self._splits = self.load()
        if name not in self._splits:
            raise GencliError(f"data set '{self.name}' has no split '{name}'", f"it has {', '.join(self._splits)}")
        return self._splits[name]

    @property
    def hash(self) -> str:
        """A digest of every item of every split at the size the model sees, with its labels and the split itself."""
        if not hasattr(self, "_hash"):
            digest = hashlib.sha256()
            for name in ("train", "test"):
                part = self.split(name)
                digest.update(f"{name} {part.x.shape} {part.x.dtype}".encode())
                for start in range(0, len(part), 4096):
                    digest.update(np.ascontiguousarray(part.x[start : start + 4096]).tobytes())
                for key in sorted(part.cond):
                    digest.update(key.encode() + part.cond[key].numpy().tobytes())
            self._hash = digest.hexdigest()[:16]
        return self._hash


def split_by_content(groups: list[bytes], share: float = 0.1) -> np.ndarray:
    """True where an item belongs to the test split: a function of its group's content, so it survives added files."""
    limit = int(share * 2**32)
    return np.array([int.from_bytes(hashlib.sha256(group).digest()[:4], "big") < limit for group in groups], dtype=bool)
