"""Which class and which split every image of a folder belongs to, and the sentences that say so."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from gencli.data._base import split_by_content
from gencli.errors import GencliError

GroupBy = Literal["none", "folder", "prefix", "csv"]
SPLIT_NAMES = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
CLASSES = (2, 1000)
LEAST = 10  # images that every class must have


@dataclass
class Plan:
    """Class and split of each image.

    Args:
        classes: names in the order of their numbers; empty for an unconditional set.
        labels: class number of each image, -1 without classes.
        splits: `train`, `test`, or the reason why an image is left out.
        notes: what a user should be told.
    """

    classes: tuple[str, ...] = ()
    labels: list[int] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Table = Mapping[str, Mapping[str, str]]
"""Rows of labels.csv by file name: `label` and `group` where given."""


def read_table(text: str | None) -> dict[str, dict[str, str]] | None:
    """labels.csv by file name.

    Raises:
        GencliError: it lacks the column `file`, or both `label` and `group`.
    """
    if text is None:
        return None
    try:
        reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
        listed = list(reader)
    except csv.Error as error:
        raise GencliError(f"labels.csv is damaged: {error}", "make its first line `file,label`") from None
    columns = [name.strip().lower() for name in reader.fieldnames or []]
    if "file" not in columns or not {"label", "group"} & set(columns):
        has = ", ".join(columns) or "none"
        raise GencliError(
            f"labels.csv needs the columns file and label, it has {has}", "make its first line `file,label`"
        )
    rows: dict[str, dict[str, str]] = {}
    for row in listed:
        clean = {
            str(key).strip().lower(): (value or "").strip() for key, value in row.items() if isinstance(value, str)
        }
        name = clean.get("file", "").replace("\\", "/").removeprefix("./")
        if name in rows and rows[name] != clean:
            raise GencliError(f"labels.csv has two different rows for {name}", "keep one of them")
        if name:
            rows[name] = clean
    return rows


def make_plan(
    names: Sequence[str], digests: Sequence[str], table: Table | None, group_by: GroupBy, unconditional: bool
) -> Plan:
    """Decide class and split of images from their names, contents and labels.csv.

    Raises:
        GencliError: `group_by` cannot be followed, or makes a single group.
    """
    plan = Plan()
    own, inner = _own_splits(names, plan.notes)
    _labels(plan, names, inner, table, own, unconditional)
    groups = merged_groups([_group(name, digests[i], table, group_by) for i, name in enumerate(names)], digests)
    free = [i for i in range(len(names)) if own[i] is None and plan.splits[i] == ""]
    if group_by != "none" and len({groups[i] for i in free}) == 1 and len(free) > 1:
        raise GencliError(
            f"group_by {group_by} puts all {len(free)} images into one group, so there is nothing to test on",
            "choose another group_by: none, folder, prefix or csv",
        )
    test = split_by_content([f"{groups[i]}".encode("utf-8", "surrogatepass") for i in free])
    for i, held_out in zip(free, test, strict=True):
        plan.splits[i] = "test" if held_out else "train"
    for i, split in enumerate(own):
        plan.splits[i] = plan.splits[i] or str(split)
    _say_splits(plan, own, digests, group_by)
    return plan


def _own_splits(names: Sequence[str], notes: list[str]) -> tuple[list[str | None], list[str]]:
    """The split that each file's first folder names, if the folders are splits, and the name within it."""
    first = [name.split("/", 1)[0] if "/" in name else "" for name in names]
    kinds = {SPLIT_NAMES[f.lower()] for f in first if f.lower() in SPLIT_NAMES}
    if "train" not in kinds or len(kinds) < 2:
        return [None] * len(names), list(names)
    held = "test" if "test" in kinds else "val"
    use = {"train": "train", held: "test"} | (
        {"val": "validation images, the set has a test split"} if held != "val" else {}
    )
    split = [use[SPLIT_NAMES[f.lower()]] if f.lower() in SPLIT_NAMES else "train" for f in first]
    within = [name.split("/", 1)[1] if f.lower() in SPLIT_NAMES else name for f, name in zip(first, names, strict=True)]
    stray = sum(f.lower() not in SPLIT_NAMES for f in first)
    if stray:
        notes.append(f"{number(stray, 'image')} outside the split folders go to training")
    return list(split), within


def _labels(
    plan: Plan, names: Sequence[str], inner: Sequence[str], table: Table | None, own: Sequence[str | None], off: bool
) -> None:
    """Fill classes, labels and the left-out reasons: from labels.csv, else from first-level folders."""
    plan.labels = [-1] * len(names)
    plan.splits = [""] * len(names)
    labelled = table is not None and any("label" in row for row in table.values())
    if off:
        plan.notes.append("classes left out: a model without labels")
        return
    if labelled and table is not None:
        given = [table.get(name, {}).get("label", "") for name in names]
        missing = [i for i, label in enumerate(given) if not label]
        absent = sorted(set(table) - set(names))
        if absent:
            plan.notes.append(
                f"labels.csv names {number(len(absent), 'file')} not found here as a readable image: {_few(absent)}"
            )
    else:
        given = [name.split("/", 1)[0] if "/" in name else "" for name in inner]
        missing = []
    without = set(missing)
    used = [i for i in range(len(names)) if i not in without and own[i] in (None, "train", "test")]
    counts = Counter(given[i] for i in used)
    why = _why_not(counts)
    if why:
        if set(counts) - {""}:
            plan.notes.append(f"no classes: {why}")
        return
    for i in missing:
        plan.splits[i] = "without a row in labels.csv"
    if missing:
        plan.notes.append(
            f"{number(len(missing), 'image')} without a label in labels.csv left out: {_few([names[i] for i in missing])}"
        )
    numbers = all(name.isdecimal() for name in counts)
    plan.classes = tuple(sorted(counts, key=lambda name: (int(name) if numbers else 0, name)))
    index = {name: i for i, name in enumerate(plan.classes)}
    plan.labels = [index.get(label, -1) for label in given]
    shown = ", ".join(f"{name} {counts[name]}" for name in plan.classes[:10])
    more = f", … {len(plan.classes) - 10} more" if len(plan.classes) > 10 else ""
    plan.notes.append(f"{len(plan.classes)} classes: {shown}{more} (a conditional model; unconditional undoes it)")


def _why_not(counts: Counter[str]) -> str:
    """Why these are not classes; empty if they are."""
    least, most = CLASSES
    if "" in counts:
        return f"{number(counts[''], 'image')} in no class folder"
    splits = sorted(name for name in counts if name.lower() in SPLIT_NAMES)
    if splits:
        return f"the folder {splits[0]} is named like a split"
    if not least <= len(counts) <= most:
        return f"{number(len(counts), 'folder')}, understood as classes are {least} to {most}"
    small = min(counts, key=lambda name: (counts[name], name))
    return f"{small} has {number(counts[small], 'image')}, every class needs {LEAST}" if counts[small] < LEAST else ""


def _group(name: str, digest: str, table: Table | None, group_by: GroupBy) -> str:
    """The name of the group that an image shares its split with."""
    if group_by == "none":
        return digest
    folder, _, file = name.rpartition("/")
    if group_by == "folder":
        return f"folder {folder}"
    if group_by == "prefix":
        return f"prefix {re.split(r'[_ -]', file.rpartition('.')[0], maxsplit=1)[0]}"
    if table is None or not any(row.get("group") for row in table.values()):
        raise GencliError(
            "group_by csv needs labels.csv with a column group", "add the column, or choose another group_by"
        )
    group = table.get(name, {}).get("group")
    return f"csv {group}" if group else f"alone {digest}"


def merged_groups(groups: Sequence[str], digests: Sequence[str]) -> list[str]:
    """Groups joined wherever the same content occurs in several, each called by its least name."""
    parent = {group: group for group in groups}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    home: dict[str, str] = {}
    for group, digest in zip(groups, digests, strict=True):
        low, high = sorted((root(group), root(home.setdefault(digest, group))))
        parent[high] = low
    return [root(group) for group in groups]


def _say_splits(plan: Plan, own: Sequence[str | None], digests: Sequence[str], group_by: GroupBy) -> None:
    """Mend a split without training images, then say how the data were split."""
    train = [i for i, split in enumerate(plan.splits) if split == "train"]
    test = [i for i, split in enumerate(plan.splits) if split == "test"]
    if not train:
        for i in test:
            plan.splits[i] = "train"
        train, test = test, []
    by = "as its folders say" if any(own) else "by content" if group_by == "none" else f"by {group_by}"
    plan.notes.append(f"split {by}: {len(train)} train, {len(test)} test")
    if not test:
        plan.notes.append("no image fell to the test split: there is nothing held out to evaluate on")
    left = Counter(split for split in plan.splits if split not in ("train", "test"))
    plan.notes += [
        f"{number(count, 'image')} left out: {why}" for why, count in left.items() if "labels.csv" not in why
    ]
    across = len({digests[i] for i in train} & {digests[i] for i in test})
    if across:
        plan.notes.append(
            f"{number(across, 'image')} in both train and test, which makes every test look better than it is"
        )


def number(count: int, word: str) -> str:
    """`1 image`, `2 images`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", …" if len(names) > most else "")
