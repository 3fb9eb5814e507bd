"""Pairs of images in a folder or zip: what a picture is painted from, and the picture.

Offers: image, label

Either each file is a pair side by side, its left half A and its right half B; or the folders `A` and `B` at the top hold files
of equal names, whatever their extensions. The condition `image` is A and x is B; `direction` turns that round. Both halves
are decoded alike (`data/_decode.py`), each fitted by itself; if most pairs have colours both get them.

What makes the splits and classes is as of `folder`, by the names of the pairs and their contents together: `train` and `test`
inside `A` and `B`, or above single files. Exact duplicates of pairs share a side.

Raises GencliError for a file in one of the two folders without one in the other, for two of the same name, and for images
outside of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from gencli.config import opt
from gencli.core import Field, Spec
from gencli.data._base import Split
from gencli.data._decode import Picture, decode
from gencli.data._open import open_source
from gencli.data._plan import number
from gencli.data._source import Source, Stamp
from gencli.data.folder import Folder
from gencli.errors import GencliError

if TYPE_CHECKING:
    from PIL.Image import Image

_LENGTH = 8  # bytes that say how long the first file of two is


class Pairs(Folder):
    """Images in twos. They are decoded, kept and split as one of twice the width, A left and B right."""

    @dataclass(frozen=True)
    class Config(Folder.Config):
        direction: Literal["a-to-b", "b-to-a"] = opt("a-to-b", "which of two is painted from which")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._half = self._size
        self._size = (self._half[0], 2 * self._half[1])
        self._apart = False

    @property
    def spec(self) -> Spec:
        whole = super().spec
        one = Field("image", (whole.x.shape[0], *self._half), vocab=whole.x.vocab)
        return Spec(one, {"image": one, **whole.cond})

    def load(self) -> dict[str, Split]:
        made = {}
        for name, both in super().load().items():
            left, right = both.x[..., : self._half[1]], both.x[..., self._half[1] :]
            given, x = (left, right) if self.config.direction == "a-to-b" else (right, left)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that a mapped file cannot be written to: nobody does
                made[name] = Split(x, {"image": torch.from_numpy(given), **both.cond}, both.ids)
        return made

    def _read(self) -> dict[str, Any]:
        with contextlib.closing(open_source(self._path)) as source:
            self._apart = {"A", "B"} <= {name.split("/", 1)[0] for name in source.stamps if "/" in name}
            return self._found_in(joined(source) if self._apart else source)

    def _pixels(self, content: bytes) -> tuple[Picture, np.ndarray]:
        first, second = self._halves(content)
        grey, alpha = first[0].grey and second[0].grey, first[0].alpha or second[0].alpha
        fitted = (first[0].fitted + second[0].fitted) / 2
        width = first[0].width + second[0].width
        picture = dataclasses.replace(first[0], width=width, grey=grey, alpha=alpha, fitted=fitted)
        return picture, np.concatenate([first[1], second[1]], axis=2)

    def _halves(self, content: bytes) -> list[tuple[Picture, np.ndarray]]:
        def one(data: bytes, cut: Callable[[Image], Image] | None) -> tuple[Picture, np.ndarray]:
            return decode(data, self._half, self.config.fit, self._background, cut)

        if not self._apart:
            return [one(content, left_half), one(content, right_half)]
        end = _LENGTH + int.from_bytes(content[:_LENGTH], "big")
        return [one(content[_LENGTH:end], None), one(content[end:], None)]

    def _describe(self, pictures: list[Picture], grey: bool) -> list[str]:
        how = "in A and B" if self._apart else "side by side"
        first, second = ("A", "B") if self.config.direction == "a-to-b" else ("B", "A")
        names = {"A": "the left half", "B": "the right half"} if not self._apart else {"A": "A", "B": "B"}
        width, height = reversed(self._half)
        told = f"{number(len(pictures), 'pair')} {how}, {width}×{height} each: {names[second]} is painted from {names[first]}"
        return [told, *super()._describe(pictures, grey)[2:]]


def left_half(image: Image) -> Image:
    """Of a picture of two side by side."""
    return _cut(image, 0)


def right_half(image: Image) -> Image:
    """The other one."""
    return _cut(image, 1)


def _cut(image: Image, which: int) -> Image:
    half = image.width // 2
    if image.width % 2:
        raise ValueError(f"{image.width} pixels wide, which are no two halves")
    return image.crop((which * half, 0, (which + 1) * half, image.height))


def joined(source: Source) -> Source:
    """The pairs of the folders A and B as files: how long the first is, it, and the second."""
    ways = {"A": stems(source, "A"), "B": stems(source, "B")}
    stray = [name for name in source.stamps if name.split("/", 1)[0] not in ways]
    if stray:
        raise GencliError(f"{source.path} has pairs in A and B, and {stray[0]} outside", "move it into one of them")
    refused = {stem for folder in ways for stem in stems(source, folder, source.refused)}
    for folder, other in (("A", "B"), ("B", "A")):
        alone = [name for stem, name in ways[folder].items() if stem not in ways[other] and stem not in refused]
        if alone:
            raise GencliError(
                f"{number(len(alone), 'image')} of {source.path} without one of the same name in {other}: {alone[0]}",
                "give both the same name, or take it away",
            )
    both = {name.split("/", 1)[1]: (name, ways["B"][stem]) for stem, name in ways["A"].items() if stem in ways["B"]}

    def read(name: str) -> bytes:
        first, second = (source.read(inner) for inner in both[name])
        return len(first).to_bytes(_LENGTH, "big") + first + second

    dated = source.path.is_dir()
    stamps = {name: _stamp(source.stamps[a], source.stamps[b], dated) for name, (a, b) in both.items()}
    return dataclasses.replace(source, read=read, stamps=stamps)


def stems(source: Source, folder: str, names: Iterable[str] | None = None) -> dict[str, str]:
    """The files in a folder by their names without folder and extension."""
    made: dict[str, str] = {}
    for name in source.stamps if names is None else names:
        if not name.startswith(f"{folder}/"):
            continue
        stem = str(PurePosixPath(name).relative_to(folder).with_suffix(""))
        if stem in made:
            raise GencliError(f"{source.path} has two images called {folder}/{stem}: {made[stem]}, {name}", "keep one")
        made[stem] = name
    return made


def _stamp(first: Stamp, second: Stamp, dated: bool) -> Stamp:
    """One that changes with either of two: dates of change go by the later, checksums are mixed."""
    return first[0] + second[0], max(first[1], second[1]) if dated else first[1] ^ second[1]
