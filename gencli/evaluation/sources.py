"""Samples from files: folders and zips of images, `.npz` arrays as ADM writes them, `points.npy`; one or several parts.

Everything is read once, in order, a few hundred items at a time. What a reader of the number must know is counted on the
way: formats, sizes, transparency, a digest of the pixels. A part that `gencli sample` wrote has a receipt, `samples.json`;
parts join if their receipts agree and their seeds fit without gap or overlap. No file is trusted: no pickle, no archive
member outside, no image that cannot be read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import tokenize
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from gencli.data import _cache
from gencli.data._decode import formats
from gencli.data._open import open_source
from gencli.data._source import UNREADABLE
from gencli.errors import GencliError
from gencli.evaluation.receipts import UNKNOWN, lossy, seed_ranges
from gencli.files import parsed, understood
from gencli.metrics._base import FeatureSet
from gencli.metrics._features import Extractor

BATCH = 256
RECEIPT = "samples.json"
PICTURES = ("grid", "entropy", "trajectory", "order", "confidence", "attention")  # beside the samples, not among them
ARRAY = "uint8 array"
OWN = ("schema", "items", "seconds", "evaluations", "network_evaluations", "batch", "file_codec", "gencli")


@dataclass
class Part(ABC):
    """One folder or file of samples, its receipt and what was seen of it; `items` yields `(N, C, H, W)` or points `(N, D)`."""

    path: Path
    receipt: dict[str, Any] = field(default_factory=dict)
    codecs: Counter[str] = field(default_factory=Counter)
    sizes: Counter[tuple[int, ...]] = field(default_factory=Counter)
    transparent: int = 0

    @property
    def seeds(self) -> list[int]:
        """Of the receipt, in the order of the files."""
        return [int(item["seed"]) for item in self.receipt.get("items", [])]

    @abstractmethod
    def count(self) -> int:
        """How many there are; nothing is decoded."""

    @abstractmethod
    def items(self) -> Iterator[Tensor]:
        """All of them, in batches of one shape."""


class Pictures(Part):
    """A folder or zip of images, each at its own size."""

    def count(self) -> int:
        with contextlib.closing(open_source(self.path)) as source:
            return len(self._names(list(source.stamps), source.refused))

    def items(self) -> Iterator[Tensor]:
        with contextlib.closing(open_source(self.path)) as source, ThreadPoolExecutor(_cache.workers()) as pool:
            names = self._names(list(source.stamps), source.refused)
            held: list[np.ndarray] = []
            for start in range(0, len(names), BATCH):
                some = names[start : start + BATCH]
                for image in pool.map(lambda name: self._decoded(source.read, name), some):
                    self._saw(image)
                    if held and (held[0].shape != image[0].shape or len(held) == BATCH):
                        yield torch.from_numpy(np.stack(held))
                        held = []
                    held.append(image[0])
            if held:
                yield torch.from_numpy(np.stack(held))

    def _names(self, found: list[str], refused: dict[str, str]) -> list[str]:
        """The samples among the images: those of the receipt, else all but pictures of several."""
        if refused:
            name, why = next(iter(refused.items()))
            raise GencliError(
                f"{len(refused)} images of {self.path} cannot be read: {name}: {why}", "mend or remove them"
            )
        if "items" in self.receipt:
            named = [str(item["file"]) for item in self.receipt["items"]]
            absent = [name for name in named if name not in set(found)]
            if absent:
                raise GencliError(
                    f"{self.path} lacks {len(absent)} of the {len(named)} samples of its receipt, first {absent[0]}",
                    f"draw them again, or delete {RECEIPT} to measure what is there without a receipt",
                )
            return named
        names = [name for name in found if not ("/" not in name and Path(name).stem in PICTURES)]
        if not names:
            raise GencliError(f"no images in {self.path}", "make some: gencli sample ddim --out DIR")
        return names

    def _saw(self, image: tuple[np.ndarray, str, bool]) -> None:
        array, codec, alpha = image
        self.codecs[codec] += 1
        self.sizes[array.shape] += 1
        self.transparent += alpha

    def _decoded(self, read: Callable[[str], bytes], name: str) -> tuple[np.ndarray, str, bool]:
        """uint8 `(1 or 3, H, W)`, the format and whether transparency was dropped."""
        from PIL import Image

        try:
            with warnings.catch_warnings(), Image.open(io.BytesIO(read(name)), formats=formats()) as image:
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                if image.mode[0] in "IF":
                    raise GencliError(
                        f"{name} in {self.path} has more than 8 bits ({image.mode})", "save samples as 8-bit PNG"
                    )
                alpha = image.has_transparency_data
                array = np.asarray(image.convert("L" if image.mode in ("L", "1", "LA") else "RGB"))
                codec = image.format or UNKNOWN
        except GencliError:
            raise
        except Exception as error:  # Pillow raises anything on hostile files
            raise GencliError(f"{name} in {self.path} cannot be read: {error}", "mend or remove it") from error
        return array.reshape(*array.shape[:2], -1).transpose(2, 0, 1), codec, alpha


class Array(Part):
    """An `.npz` of uint8 images `(N, H, W, C)`, read a batch at a time and never whole."""

    def count(self) -> int:
        with self._opened() as (_, shape):
            return shape[0]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, tuple[int, int, int, int]]]:
        """The array's bytes after its header, and the shape that the header states."""
        mend = understood(self.path, "write it again with numpy.savez", also=(*UNREADABLE, MemoryError))
        with mend, zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as file:
            shape = array_shape(file, self.path)
            if math.prod(shape) > archive.getinfo("arr_0.npy").file_size:
                raise ValueError(f"arr_0 is {shape}, which is more than the file holds")
            yield file, shape

    def items(self) -> Iterator[Tensor]:
        with self._opened() as (file, shape):
            if min(shape) < 1:
                raise GencliError(f"{self.path} holds no images: arr_0 is {shape}", "give an array with some")
            each = int(np.prod(shape[1:]))
            self.codecs[ARRAY] += shape[0]
            self.sizes[(shape[3], shape[1], shape[2])] += shape[0]
            for start in range(0, shape[0], BATCH):
                count = min(BATCH, shape[0] - start)
                data = file.read(count * each)
                if len(data) < count * each:
                    raise GencliError(
                        f"{self.path} is damaged: it ends within image {start + len(data) // each}", "copy it"
                    )
                images = np.frombuffer(data, np.uint8).reshape(count, *shape[1:]).transpose(0, 3, 1, 2)
                yield torch.from_numpy(images.copy())  # what was read cannot be written to


def array_shape(file: BinaryIO | Any, path: Path) -> tuple[int, int, int, int]:
    """The shape that the header of `arr_0` states; refused unless it is uint8 `(N, H, W, 1 or 3)` in C order."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, kind = read(file)
    except (*UNREADABLE, KeyError, SyntaxError, tokenize.TokenError) as error:
        raise GencliError(f"{path} is damaged: {error}", "write it again with numpy.savez") from error
    if kind != np.uint8 or fortran or len(shape) != 4 or shape[3] not in (1, 3):
        raise GencliError(
            f"{path} holds {kind} {shape}, not uint8 (N, H, W, 1 or 3)", "write rounded images, channels last"
        )
    return shape


class Points(Part):
    """The `points.npy` of a folder: coordinates, float32."""

    def count(self) -> int:
        return len(self._array())

    def _array(self) -> Any:
        path = self.path / "points.npy"
        with understood(path, "draw the samples again", also=(EOFError, MemoryError, SyntaxError, tokenize.TokenError)):
            array = np.load(path, allow_pickle=False)
            if array.ndim != 2 or array.dtype.kind != "f":
                raise ValueError(f"it holds {array.dtype} {array.shape}, not points")
        return array

    def items(self) -> Iterator[Tensor]:
        array = self._array()
        self.codecs["float array"] += len(array)
        self.sizes[array.shape[1:]] += len(array)
        yield from torch.from_numpy(array).split(BATCH)


def open_part(path: Path) -> Part:
    """What lies at a path, with its receipt; nothing is decoded yet."""
    if path.suffix == ".npz" and path.is_file():
        with _archive(path) as archive:
            if "arr_0.npy" not in archive.namelist():
                raise GencliError(f"{path} has no array 'arr_0': {', '.join(archive.namelist()[:4])}", "name it arr_0")
        return Array(path)
    mend = understood(f"{RECEIPT} in {path}", "draw the samples again", also=UNREADABLE)
    with contextlib.closing(open_source(path)) as source, mend:
        receipt = parsed(source.read(RECEIPT)) if _has(source, RECEIPT) else {}
        [(item["file"], int(item["seed"])) for item in receipt.get("items", [])]
        if not isinstance(receipt.get("run", ""), str):
            raise TypeError(f"its run is {receipt['run']!r}")
    kind = Points if path.is_dir() and (path / "points.npy").is_file() else Pictures
    return kind(path, receipt)


def _has(source: Any, name: str) -> bool:
    try:
        source.read(name)
    except KeyError:
        return False
    return True


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except UNREADABLE as error:
        raise GencliError(f"{path} is damaged: {error}", "write it again with numpy.savez") from error


class Samples:
    """One or several parts as one set.

    Raises:
        GencliError: parts that do not fit: no receipt, another origin, seeds that overlap or leave a gap.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.parts = [open_part(path) for path in paths]
        self._digest = hashlib.sha256()
        if len(self.parts) > 1:
            _check_origin(self.parts)
            _check_seeds(self.parts)
            self.parts.sort(key=lambda part: min(part.seeds))  # the order on the command line changes nothing

    def count(self) -> int:
        """How many there are, before they are read."""
        return sum(part.count() for part in self.parts)

    def items(self) -> Iterator[Tensor]:
        """All of them, part by part."""
        for part in self.parts:
            for batch in part.items():
                self._digest.update(batch.contiguous().numpy().tobytes())
                yield batch

    def features(self, by: Extractor) -> FeatureSet:
        """Of all of them."""
        return by.extract(self._of_one_size(by))

    def _of_one_size(self, by: Extractor) -> Iterator[Tensor]:
        first: tuple[int, ...] | None = None
        for batch in self.items():
            first = first or tuple(batch.shape[1:])
            if not by.any_size and tuple(batch.shape[1:]) != first:
                raise GencliError(
                    f"features '{by.name}' need images of one size, these have {as_size(first)} and "
                    f"{as_size(tuple(batch.shape[1:]))}",
                    "give samples of one size, or --features gencli",
                )
            yield batch

    @property
    def codecs(self) -> Counter[str]:
        """How many items had each format, once they were read."""
        return sum((part.codecs for part in self.parts), Counter())

    @property
    def sizes(self) -> Counter[tuple[int, ...]]:
        """How many items had each shape, once they were read."""
        return sum((part.sizes for part in self.parts), Counter())

    def receipt(self) -> dict[str, Any]:
        """What made the samples, as far as it is known, and what was read."""
        known = {key: value for key, value in self.parts[0].receipt.items() if key not in OWN}
        seeds = sorted(seed for part in self.parts for seed in part.seeds)
        return {
            **known,
            "samples": ", ".join(str(part.path) for part in self.parts),
            "images": sum(self.codecs.values()),
            "content": self._digest.hexdigest()[:16],
            "seeds": seed_ranges(seeds) if seeds else UNKNOWN,
            "labels": _labels([item for part in self.parts for item in part.receipt.get("items", [])]),
            "file_codec": words_of(self.codecs),
            "rounding": known.get("rounding", UNKNOWN),
        }

    def notes(self, reference: Counter[str], like: tuple[int, ...]) -> list[str]:
        """What may make the number mean something else than it seems, a line each.

        Args:
            reference: formats of the reference's files.
            like: shape of an item of the reference.
        """
        made = []
        if len(self.sizes) > 1:
            found = ", ".join(f"{count} of {as_size(size)}" for size, count in self.sizes.most_common(4))
            made.append(f"the samples have {len(self.sizes)} sizes ({found}): the features alone make them alike")
        elif next(iter(self.sizes)) != like:
            made.append(f"the samples are {as_size(next(iter(self.sizes)))}, the reference is {as_size(like)}")
        if lossy(self.codecs) != lossy(reference):
            made.append(
                f"the samples are {words_of(self.codecs)}, the reference is {words_of(reference)}: "
                "lossy files alone change such distances"
            )
        if dropped := sum(part.transparent for part in self.parts):
            made.append(f"{dropped} samples have transparency, which was dropped")
        return made


def _labels(items: Sequence[dict[str, Any]]) -> str:
    """How classes are distributed over the samples of receipts."""
    if not items:
        return UNKNOWN
    counts = Counter(item["label"] for item in items if "label" in item).values()
    if not counts:
        return "none"
    return "balanced" if max(counts) - min(counts) <= 1 else f"uneven, {min(counts)} to {max(counts)} a class"


def _check_origin(parts: Sequence[Part]) -> None:
    """Parts of one set are drawn alike."""
    for part in parts:
        if not part.seeds:
            raise GencliError(
                f"{part.path} has no receipt, so it is not known to fit the others",
                "join folders of gencli sample only",
            )
    first = parts[0]
    for other in parts[1:]:
        keys = sorted({*first.receipt, *other.receipt} - {*OWN, "versions", "device"})
        for key in keys:
            ours, theirs = first.receipt.get(key), other.receipt.get(key)
            if ours != theirs:
                raise GencliError(
                    f"{first.path} and {other.path} were made differently: {key} {ours} and {theirs}",
                    "join samples of the same run, sampler and guidance",
                )


def _check_seeds(parts: Sequence[Part]) -> None:
    """Every seed once, none left out."""
    counted = Counter(seed for part in parts for seed in part.seeds)
    twice = [seed for seed, count in counted.items() if count > 1]
    if twice:
        raise GencliError(
            f"seeds overlap: {seed_ranges(sorted(twice))} are in more than one part or twice in one",
            "draw the parts with seeds that follow each other: --seeds 0-499 and --seeds 500-999",
        )
    gaps = sorted(set(range(min(counted), max(counted) + 1)) - set(counted))
    if gaps:
        raise GencliError(
            f"seeds leave a gap: {seed_ranges(gaps)} are in no part", f"draw them: --seeds {seed_ranges(gaps)}"
        )


def words_of(codecs: Counter[str]) -> str:
    """`PNG`, or `PNG 90, JPEG 10`."""
    if len(codecs) == 1:
        return next(iter(codecs))
    return ", ".join(f"{codec} {count}" for codec, count in sorted(codecs.items()))


def as_size(shape: tuple[int, ...]) -> str:
    """`(3, 28, 32)` to `32×28 colour`."""
    if len(shape) != 3:
        return "×".join(map(str, shape))
    return f"{shape[2]}×{shape[1]} {'grey' if shape[0] == 1 else 'colour'}"
