"""What `gencli data check` says about a folder of images."""

from __future__ import annotations

import shlex
from collections import Counter
from dataclasses import dataclass

from gencli.data.folder import Folder


@dataclass(frozen=True)
class Report:
    """Plain values only, so that `dataclasses.asdict` is JSON.

    Args:
        path: the folder or zip.
        name: what the data set is called in run names.
        hash: of every file's content, the labels and the settings.
        images: readable ones, including those left out of both splits.
        size: width and height as the model will see them.
        mode: `grey` or `colour`.
        formats: number of images by file format.
        modes: number of images by stored mode.
        sizes: smallest, median and largest by area, as `WIDTH×HEIGHT`.
        classes: number of images of each class in train and test.
        splits: number of images in train and test, and left out.
        duplicates: images whose file equals an earlier one.
        unreadable: name and reason of each file that could not be read.
        junk: number of hidden and system files ignored.
        others: number of other files by extension.
        notes: one line each.
        cache: where the decoded pixels are.
        suggestion: the train command most likely wanted next.
    """

    path: str
    name: str
    hash: str
    images: int
    size: tuple[int, int]
    mode: str
    formats: dict[str, int]
    modes: dict[str, int]
    sizes: dict[str, str]
    classes: dict[str, dict[str, int]]
    splits: dict[str, int]
    duplicates: int
    unreadable: dict[str, str]
    junk: int
    others: dict[str, int]
    notes: list[str]
    cache: str
    suggestion: str


def check(data: Folder) -> Report:
    """Read a folder as training would, and report everything about it."""
    found = data.found
    items = found["items"]
    height, width = data.spec.x.shape[1:]
    areas = sorted((item["width"] * item["height"], item["width"], item["height"]) for item in items)
    picked = {"smallest": areas[0], "median": areas[len(areas) // 2], "largest": areas[-1]}
    digests = [found["index"][item["name"]] for item in items]
    splits = Counter(item["split"] if item["split"] in ("train", "test") else "left out" for item in items)
    return Report(
        path=str(data.config.path),
        name=data.name,
        hash=data.hash,
        images=len(items),
        size=(width, height),
        mode="grey" if found["grey"] else "colour",
        formats=dict(Counter(item["format"] for item in items).most_common()),
        modes=dict(Counter(item["mode"] for item in items).most_common()),
        sizes={key: f"{w}×{h}" for key, (_, w, h) in picked.items()},
        classes={name: _of_class(items, number) for number, name in enumerate(found["classes"])},
        splits={key: splits[key] for key in ("train", "test", "left out") if splits[key] or key != "left out"},
        duplicates=len(digests) - len(set(digests)),
        unreadable=data.unreadable,
        junk=found["junk"],
        others=dict(found["others"]),
        notes=data.notes,
        cache=str(data.place),
        suggestion=_suggestion(data, width, height),
    )


def _of_class(items: list[dict[str, object]], number: int) -> dict[str, int]:
    counts = Counter(item["split"] for item in items if item["label"] == number)
    return {"train": counts["train"], "test": counts["test"]}


def _suggestion(data: Folder, width: int, height: int) -> str:
    size = str(width) if width == height else f"{width}x{height}"
    return f"gencli train ddpm --data {shlex.quote(str(data.config.path))} --image-size {size}"
