"""What a user hands in beside a run: images as files or as items of the run's own data, and which of their pixels are kept.

Files are decoded by the rules of data sets (`data/_decode.py`) and must have the run's size and colours; another size is
made to fit only if that is asked for. A grey picture serves where colours are modelled, and one whose colours are all greys
where greys are.

Raises GencliError for what cannot be read, has another size or colours, and for masks that keep nothing or everything.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gencli import files
from gencli.bundle import Run
from gencli.core import Batch
from gencli.data import open_table
from gencli.data._decode import Fit, Picture, decode
from gencli.data._open import open_source
from gencli.data._source import LARGEST, UNREADABLE
from gencli.errors import GencliError
from gencli.evaluation.sources import as_size, open_part
from gencli.operators.inpaint import HALVES, half

WHITE = (255, 255, 255)
_ITEMS = re.compile(r"(train|test):(.*)", re.DOTALL)


@dataclass(frozen=True)
class Keep:
    """Which pixels are kept.

    Args:
        name: `top-half`, or the name of the file.
        mask: `(H, W)`, true = kept.
    """

    name: str
    mask: Tensor

    @property
    def digest(self) -> str:
        """Of the mask and its size."""
        return _digest(self.mask.numpy())


@dataclass(frozen=True)
class Inputs:
    """The images to complete.

    Args:
        x: `(M, C, H, W)` uint8.
        names: a file's path, or `test:3`.
        cond: conditions that came with them, `(M, …)`.
        notes: what was done to them, a line each.
    """

    x: Tensor
    names: tuple[str, ...]
    cond: Batch = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def digests(self) -> list[str]:
        """Of each one's pixels."""
        return [_digest(one.numpy()) for one in self.x]


def _digest(array: np.ndarray) -> str:
    """Of values, shape and type."""
    head = f"{array.shape} {array.dtype}".encode()
    return hashlib.sha256(head + np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


# -------------------------------------------------------------------------------------------------------------------- masks


def keep_of(text: str, height: int, width: int) -> Keep:
    """A half by name, or the white pixels of a picture (from grey level 128 on)."""
    if text in HALVES:
        mask = half(text, height, width)
        if not mask.any():
            raise GencliError(f"--keep {text} keeps nothing of {width}×{height} pixels", "give a mask")
        return Keep(text, mask)
    path = Path(text).expanduser()
    if not path.is_file():
        raise GencliError(
            f"--keep is '{text}', neither a half nor a file", f"give {', '.join(HALVES)}, or a black and white picture"
        )
    picture, pixels = _decoded(_content(lambda: files.read_bytes(path, LARGEST), text), text)
    if (picture.height, picture.width) != (height, width):
        raise GencliError(
            f"mask {text} is {picture.width}×{picture.height}, the images are {width}×{height}",
            "draw it at the images' size: white pixels are kept",
        )
    mask = torch.from_numpy(pixels.astype(np.int64).sum(0) >= 3 * 128)
    for all_of_it, words, hint in (
        (~mask, "nothing", "paint white what shall stay, or leave out --input and --keep to draw from nothing"),
        (mask, "everything", "paint black what shall be drawn anew"),
    ):
        if bool(all_of_it.all()):
            raise GencliError(f"mask {text} keeps {words}", hint)
    return Keep(path.name, mask)


# ------------------------------------------------------------------------------------------------------------------- inputs


def read_inputs(run: Run, given: Sequence[str], fit: Fit | None = None, key: str = "x") -> Inputs:
    """Images from files, folders and zips, or items of the run's own data set as `test:0-15`.

    Args:
        run: whose size and colours they must have.
        given: paths, or items; not both.
        fit: how images of another size are made to fit; None = refused.
        key: which images of the run's data they are: x, or a condition.
    """
    field = run.data_spec.x if key == "x" else run.data_spec.cond[key]
    kind, shape = field.kind, field.shape
    if kind != "image":
        raise GencliError(f"run {run.name} models {kind}, which have no halves", "complete images")
    items = [match for text in given if (match := _ITEMS.fullmatch(text))]
    if not items:
        return _from_files([Path(text).expanduser() for text in given], shape, fit)
    if len(items) < len(given):
        other = next(text for text in given if not _ITEMS.fullmatch(text))
        raise GencliError(f"--input {items[0][0]} has a class of its own, {other} has none", "give one sort at a time")
    return _from_data(run, [(match[1], _numbers(match[2], match[0])) for match in items], key)


def _numbers(text: str, whole: str) -> list[int]:
    made: list[int] = []
    for part in text.split(","):
        low, _, high = part.strip().partition("-")
        if not low.isdigit() or (high and not high.isdigit()) or (high and int(high) < int(low)):
            raise GencliError(f"--input is '{whole}'", "give items such as test:0-15 or test:3,5,8")
        made += range(int(low), int(high or low) + 1)
    return made


def _from_data(run: Run, parts: Sequence[tuple[str, list[int]]], which: str) -> Inputs:
    data = open_table(run.config["recipe"]["data"])
    held: list[Batch] = []
    for name, numbers in parts:
        split = data.split(name)
        if max(numbers) >= len(split):
            raise GencliError(
                f"--input {name}:{max(numbers)}: data set '{data.name}' has {len(split)} {name} items, from 0 on",
                f"give numbers up to {len(split) - 1}",
            )
        held.append(split.batch(torch.tensor(numbers)))
    names = tuple(f"{name}:{i}" for name, numbers in parts for i in numbers)
    taken = [key for key in run.model.spec.cond if key != which and all(key in batch for batch in held)]
    changed = data.hash != run.config["data"].get("hash")
    notes = (f"data set '{data.name}' has changed since the training: it may have seen these items",) * changed
    return Inputs(
        torch.cat([b[which] for b in held]), names, {k: torch.cat([b[k] for b in held]) for k in taken}, notes
    )


def _from_files(paths: Sequence[Path], shape: Sequence[int], fit: Fit | None) -> Inputs:
    read = [pair for path in paths for pair in _files(path)]
    made = [_fitting(name, content, tuple(shape), fit) for name, content in read]
    notes = [note for _, found in made for note in found]
    return Inputs(torch.stack([x for x, _ in made]), tuple(name for name, _ in read), {}, tuple(notes))


def _files(path: Path) -> list[tuple[str, bytes]]:
    """One file, or all images of a folder or zip; of a folder that `gencli sample` wrote, the samples."""
    if path.is_file() and path.suffix.lower() != ".zip":
        return [(str(path), _content(lambda: files.read_bytes(path, LARGEST), str(path)))]
    with contextlib.closing(open_source(path)) as source:
        if source.refused:
            name, why = next(iter(source.refused.items()))
            raise GencliError(f"{name} in {path} cannot be read: {why}", "mend or remove it")
        drawn = open_part(path).receipt.get("items")
        names = list(source.stamps) if drawn is None else [str(item["file"]) for item in drawn]
        absent = [name for name in names if name not in source.stamps]
        if absent or not names:
            what = f"{path} lacks {absent[0]}, which its receipt names" if absent else f"no images in {path}"
            raise GencliError(what, "give images, or items of the run's data such as test:0-15")
        return [(str(path / name), _content(partial(source.read, name), str(path / name))) for name in names]


def _content(read: Callable[[], bytes], name: str) -> bytes:
    try:
        return read()
    except UNREADABLE as error:
        raise GencliError(f"{name} cannot be read: {error}", "mend or remove it") from error


def _decoded(content: bytes, name: str, size: tuple[int, int] | None = None, fit: Fit = "crop") -> tuple[Picture, Any]:
    try:
        picture, pixels = decode(content, size or (1, 1), fit, WHITE)
        return (picture, pixels) if size else decode(content, (picture.height, picture.width), "stretch", WHITE)
    except Exception as error:  # Pillow raises anything on hostile files
        raise GencliError(f"{name} cannot be read: {error}", "give an image, such as a PNG") from error


def _fitting(name: str, content: bytes, shape: tuple[int, ...], fit: Fit | None) -> tuple[Tensor, list[str]]:
    """The image `(C, H, W)` as the model's data are, and what was done to it."""
    channels, height, width = shape
    picture, pixels = _decoded(content, name)
    found, notes = (3 if (pixels != pixels[:1]).any() else 1, picture.height, picture.width), []
    if found[1:] != shape[1:]:
        if fit is None:
            raise GencliError(
                f"{name} is {as_size(found)}, the run's images are {as_size(shape)}",
                "add --fit crop, pad or stretch to have it resized",
            )
        notes.append(f"{name} was {picture.width}×{picture.height} and is resized ({fit}) to {width}×{height}")
        _, pixels = _decoded(content, name, (height, width), fit)
    if channels == 1 and found[0] == 3:
        raise GencliError(f"{name} has colours, the run's images are grey", "make it grey first")
    notes += [f"{name} has transparent pixels, which are laid on white"] * picture.alpha
    return torch.from_numpy(np.ascontiguousarray(pixels[:channels])), notes
