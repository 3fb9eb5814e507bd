"""References from files, and in what formats the items of any reference were stored."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import ClassVar

import torch

from gencli.core import Field, Spec
from gencli.data._base import Data, Split
from gencli.evaluation.sources import ARRAY, open_part


class Reference(Data):
    """An `.npz` of images as a reference; all of them are of either split."""

    kind: ClassVar[str] = "image"

    def __init__(self, path: Path) -> None:
        super().__init__(None)
        self.path, self.part = path, open_part(path)

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def spec(self) -> Spec:
        return Spec(Field("image", tuple(self.split("test").x.shape[1:]), vocab=256))

    def load(self) -> dict[str, Split]:
        items = Split(torch.cat(list(self.part.items())).numpy())
        return {"train": items, "test": items}


def reference_codecs(data: Data, split: str) -> Counter[str]:
    """Formats of the files that a reference was read from."""
    found = getattr(data, "found", None)
    if isinstance(found, dict):
        return Counter(str(item["format"]) for item in found["items"] if item["split"] == split)
    return Counter({ARRAY: len(data.split(split))})
