"""Any folder, zip or shards of images, by recursive search; classes from first-level folders or a labels.csv.

Offers: image, label

`labels.csv` at the top has the columns `file,label` and optionally `group`. Folders make classes if there are 2 to 1,000
of at least 10 images each and none is named like a split; folders named train and test (or val) are the splits. Else 10 %
are held out by a hash of their content or group, so the split stays when files are added; exact duplicates share a side.
Every image gets the mode (grey or colour) of the majority. Decoding follows `data/_decode.py`; what cannot be read is
named and counted in `notes`, `unreadable` and `gencli data check`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import unicodedata
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from gencli.config import opt
from gencli.core import Field, Spec
from gencli.data import _cache
from gencli.data._base import Data, Split
from gencli.data._decode import RGB, Picture, decode
from gencli.data._open import open_source
from gencli.data._plan import make_plan, number, read_table
from gencli.data._shards import SUFFIXES
from gencli.data._source import EXTENSIONS, Source
from gencli.errors import GencliError
from gencli.files import as_size, atomic_json

_RULES = 1  # raised when decoding or splitting changes, so that older decoded pixels are not taken for these
DEFAULT_SIDE = 32


class Folder(Data):
    """Images of the user's own."""

    @dataclass(frozen=True)
    class Config:
        path: str = opt("", "folder or zip of images")
        image_size: str = opt("0", "side in pixels, or WIDTHxHEIGHT; 0 is 32")
        fit: Literal["crop", "pad", "stretch"] = opt("crop", "how an image of another shape is made to fit")
        background: str = opt("white", "colour under transparent pixels and around padded images")
        group_by: Literal["none", "folder", "prefix", "csv"] = opt(
            "none", "what stays on one side of the split: same content, folder, file name before _ or -, column group"
        )
        unconditional: bool = opt(False, "leave the class labels out")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._size = parse_size(config.image_size)
        self._background = parse_colour(config.background)
        self._found: dict[str, Any] | None = None

    # -------------------------------------------------------------------------------------------------- what a data set is

    @property
    def name(self) -> str:
        """The folder's own name, made fit for a run's name."""
        return slug(self._path.stem if self._path.suffix.lower() in (".zip", *SUFFIXES) else self._path.name)

    @property
    def spec(self) -> Spec:
        found = self.found
        classes = tuple(found["classes"])
        label = {"label": Field("label", (), vocab=len(classes), names=classes)} if classes else {}
        return Spec(Field("image", tuple(found["shapes"]["train"][1:]), vocab=256), label)

    @property
    def notes(self) -> list[str]:
        kept = sum(int(np.prod(shape)) for shape in self.found["shapes"].values())
        limit = as_size(_cache.limit())
        return [*self.found["notes"], f"decoded once to {self.place} ({as_size(kept)}; all folders at most {limit})"]

    @property
    def hash(self) -> str:
        """A digest of every file's content, the labels and the settings; the same wherever the folder lies."""
        return str(self.found["key"])

    def load(self) -> dict[str, Split]:
        found = self.found
        splits = {}
        for name in ("train", "test"):
            rows = [item for item in found["items"] if item["split"] == name]
            labels = (
                {"label": torch.tensor([row["label"] for row in rows], dtype=torch.int64)} if found["classes"] else {}
            )
            splits[name] = Split(_cache.pixels(found["key"], name), labels, [row["name"] for row in rows])
        return splits

    # ---------------------------------------------------------------------------------------------- what only a folder has

    @property
    def found(self) -> dict[str, Any]:
        """Everything that was found, as plain values; reads the folder on first use."""
        if self._found is None:
            self._found = self._read()
        return self._found

    @property
    def index(self) -> dict[str, str]:
        """The content hash of every image file by its relative name, and of labels.csv."""
        return dict(self.found["index"])

    @property
    def unreadable(self) -> dict[str, str]:
        """Image files that could not be read, with the reason."""
        return dict(self.found["unreadable"])

    @property
    def place(self) -> Path:
        """Where the decoded pixels are kept."""
        return _cache.folder() / self.hash

    def changed(self, old: Mapping[str, str]) -> int:
        """How many files were added, removed or have other content than in an earlier `index`."""
        new = self.index
        return sum(old.get(name) != new.get(name) for name in {*old, *new})

    # ---------------------------------------------------------------------------------------------------------- reading it

    @property
    def _path(self) -> Path:
        if not self.config.path:
            raise GencliError(
                f"data set '{self.public_name()}' needs a path", "give --data PATH, a folder or zip of images"
            )
        path = Path(self.config.path).expanduser().absolute()
        return path.resolve() if ".." in path.parts else path  # a link keeps the name that the user gave it

    def _read(self) -> dict[str, Any]:
        with contextlib.closing(open_source(self._path)) as source:
            return self._found_in(source)

    def _found_in(self, source: Source) -> dict[str, Any]:
        if not source.stamps and not source.refused:
            raise _no_images(source)
        digests = _cache.digests(source, self.progress)
        index = {**digests, **{name: f"refused: {why}" for name, why in source.refused.items()}}
        if source.table is not None:
            index["labels.csv"] = _cache.key_of("labels.csv", {"": source.table})
        settings = {**dataclasses.asdict(self.config), "path": None, "image_size": None, "background": None}
        key = _cache.key_of([_RULES, settings, self._size, self._background], index)
        found = _cache.load(key)
        if found is None:
            self._build(key, source, digests, index)
            found = _cache.load(key)
            assert found is not None, f"{_cache.folder() / key} was written and cannot be read"
        return found

    def _build(self, key: str, source: Source, digests: dict[str, str], index: dict[str, str]) -> None:
        """Decode everything once and write pixels and findings."""
        height, width = self._size
        names = list(digests)
        table = read_table(source.table)
        with _cache.building(key, len(names) * 3 * height * width) as temporary:
            stage_path = temporary / "stage"
            pictures, problems = self._decode(source, names, stage_path)
            unreadable = dict(sorted({**source.refused, **problems}.items()))
            rows = [name for name in names if name in pictures]
            if not rows:
                raise _none_readable(source, unreadable)
            config = self.config
            plan = make_plan(rows, [digests[n] for n in rows], table, config.group_by, config.unconditional)
            grey = 2 * sum(pictures[name].grey for name in rows) > len(rows)
            stage = np.memmap(stage_path, np.uint8, mode="r", shape=(len(rows), 3, height, width))
            shapes = {
                split: _cache.write_rows(
                    temporary / f"{split}.npy", stage, [i for i, s in enumerate(plan.splits) if s == split], grey
                )
                for split in ("train", "test")
            }
            del stage  # Windows cannot delete what is mapped
            stage_path.unlink()
            items = [
                {"name": n, "split": plan.splits[i], "label": plan.labels[i], **dataclasses.asdict(pictures[n])}
                for i, n in enumerate(rows)
            ]
            notes = [*self._describe(list(pictures.values()), grey), *plan.notes]
            notes += _describe_files([digests[n] for n in rows], unreadable, source)
            found = {
                **{"key": key, "grey": grey, "shapes": shapes, "classes": plan.classes, "notes": notes, "items": items},
                **{"index": index, "unreadable": unreadable, "junk": source.junk, "others": dict(source.others)},
            }
            atomic_json(temporary / "found.json", found)

    def _decode(self, source: Source, names: list[str], stage: Path) -> tuple[dict[str, Picture], dict[str, str]]:
        """Pictures and problems by name; the pixels of the pictures go to `stage`, in order."""
        pictures: dict[str, Picture] = {}
        problems: dict[str, str] = {}

        def one(name: str) -> tuple[Picture, np.ndarray] | str:
            try:
                return self._pixels(source.read(name))
            except Exception as error:  # Pillow raises anything on hostile files; each is reported by name
                return reason(error)

        with warnings.catch_warnings(), stage.open("wb") as file, ThreadPoolExecutor(_cache.workers()) as pool:
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files, which are reported here instead
            done = 0
            for part in _cache.chunks(names):
                for name, result in zip(part, pool.map(one, part), strict=True):
                    if isinstance(result, str):
                        problems[name] = result
                    else:
                        pictures[name] = result[0]
                        file.write(np.ascontiguousarray(result[1]).tobytes())
                done += len(part)
                if self.progress is not None:
                    self.progress(f"decoding {source.path.name}", done, len(names))
        return pictures, problems

    def _pixels(self, content: bytes) -> tuple[Picture, np.ndarray]:
        """What a file holds, `(3, height, width)`; raises as `decode` does."""
        return decode(content, self._size, self.config.fit, self._background)

    def _describe(self, pictures: list[Picture], grey: bool) -> list[str]:
        """How the pixels were made, one line each."""
        height, width = self._size
        n, greys = len(pictures), sum(p.grey for p in pictures)
        other = n - greys if grey else greys
        changed = f", {other} of them turned {'grey' if grey else 'into colour'}" if other else ""
        lines = [f"{number(n, 'image')} in {'grey' if grey else 'colour'}, as most of them are{changed}"]
        share = float(np.mean([p.fitted for p in pictures]))
        why = ", the default" if self.config.image_size in ("", "0") else ""
        fitted = {
            "crop": f"cut to the centre: {share:.1%} of the pixels lost",
            "pad": f"padded with {self.config.background}: {share:.1%} of the result, no pixel lost",
            "stretch": f"stretched: aspect changed by {share:.1%} on average, no pixel lost",
        }[self.config.fit]
        lines.append(f"size {width}×{height}{why}, {fitted}")
        enlarged = sum(p.width < width or p.height < height for p in pictures)
        facts = {
            "smaller than that, enlarged": enlarged,
            f"with transparency, laid on {self.config.background}": sum(p.alpha for p in pictures),
            "CMYK, turned to RGB without colour profiles": sum(p.mode == "CMYK" for p in pictures),
            "with 16 or 32 bits, reduced to 8 over their whole range": sum(p.mode[0] in "IF" for p in pictures),
            "turned by their EXIF rotation": sum(p.rotated for p in pictures),
            "with several frames, the first was taken": sum(p.frames > 1 for p in pictures),
        }
        return lines + [f"{count} {what}" for what, count in facts.items() if count]


def _describe_files(digests: list[str], unreadable: dict[str, str], source: Source) -> list[str]:
    twins = len(digests) - len(set(digests))
    lines = [f"{number(twins, 'exact duplicate')}, each on the side of its twin"] if twins else []
    if unreadable:
        first = "; ".join(f"{name} ({why})" for name, why in list(unreadable.items())[:3])
        lines.append(
            f"{number(len(unreadable), 'image file')} could not be read: {first}{'; …' if len(unreadable) > 3 else ''}"
        )
    if source.junk or source.others:
        kinds = ", ".join(f"{count} {what}" for what, count in source.others.most_common(5))
        parts = [f"{source.junk} hidden or system files"] * bool(source.junk) + [kinds] * bool(kinds)
        lines.append(f"ignored: {', '.join(parts)}")
    return lines


def _no_images(source: Source) -> GencliError:
    kinds = ", ".join(f"{count} {what}" for what, count in source.others.most_common(5))
    holds = f"it holds {kinds} files" if kinds else "it holds no files"
    return GencliError(f"no images in {source.path}", f"{holds}; understood are {', '.join(sorted(EXTENSIONS))}")


def _none_readable(source: Source, unreadable: dict[str, str]) -> GencliError:
    first = "; ".join(f"{name}: {why}" for name, why in list(unreadable.items())[:3])
    return GencliError(
        f"none of the {len(unreadable)} image files in {source.path} can be read ({first})",
        "mend or convert them, or give another folder",
    )


def reason(error: Exception) -> str:
    """One short line from whatever a decoder raised."""
    text = str(error).split("\n", 1)[0].strip()
    if "cannot identify image file" in text:
        return "not an image, or damaged at its start"
    return text if text and type(error) in (OSError, ValueError) else f"{type(error).__name__} {text}".strip()


def parse_size(text: str) -> tuple[int, int]:
    """`32` or `64x96` (WIDTHxHEIGHT) to (height, width)."""
    match = re.fullmatch(r"\s*(\d{1,4})(?:\s*[xX×]\s*(\d{1,4}))?\s*", text or "0")
    if not match:
        raise GencliError(f"image_size is '{text}'", "give a side such as 32, or WIDTHxHEIGHT such as 64x96")
    width = int(match[1])
    height = int(match[2]) if match[2] else width
    if (width, height) == (0, 0):
        return DEFAULT_SIDE, DEFAULT_SIDE
    if min(width, height) < 4 or max(width, height) > 4096:
        raise GencliError(f"image_size is '{text}', sides may be 4 to 4096", "give a side such as 32")
    return height, width


def parse_colour(text: str) -> RGB:
    """`white`, `#202020` and what else Pillow knows."""
    from PIL import ImageColor

    try:
        red, green, blue, *_ = ImageColor.getrgb(text)
    except ValueError:
        raise GencliError(f"background is '{text}'", "give a colour such as white, black or #808080") from None
    return red, green, blue


def slug(name: str) -> str:
    """A name of lower-case letters, digits and hyphens: `My Photos (2)` is `my-photos-2`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:40].strip("-") or "folder"
