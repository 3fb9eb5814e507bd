"""Images in shards: tars as `webdataset` writes them, Parquet and Arrow files as `datasets` and the Hub have them.

Every image is found once, by its place in a shard, and read from there: nothing is unpacked, no order depends on who reads, and
a run goes on in the middle of a shard as anywhere else. Shards whose names or folders begin with a split's name are that split.

    tar      members of one name up to its first dot belong together: `0001.jpg`, `0001.cls` (the class's number or name) or
             `0001.json` (its `label`). One tar without classes is a packed folder, and read as a zip is.
    Parquet  a column of images (bytes, or bytes and path) and one called `label`, with the names that the file's header gives
    Arrow    the same, from `Dataset.save_to_disk`
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from gencli.data._plan import SPLIT_NAMES
from gencli.data._source import LARGEST, LEADS_OUT, Source, common_root, is_junk, leads_out
from gencli.errors import GencliError
from gencli.files import parsed

SUFFIXES = (".tar", ".parquet", ".arrow")
LABELS = ("label", "labels", "fine_label", "class", "cls")
IMAGES = ("image", "img", "images", "jpg", "jpeg", "png", "webp")
LABEL_TEXT = 2**20  # bytes of a member that says a class
GROUPS = 2  # row groups held at once


def is_shard(path: Path) -> bool:
    """Whether a file's name says so; `datasets` keeps results of its own in `cache-….arrow`."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith((".", "cache-"))


def open_shards(root: Path, shards: Sequence[Path]) -> Source:
    """The images in all shards under `root`, which is a folder or the one shard.

    Raises:
        GencliError: a shard is damaged, has no images, or needs a library that is not installed.
    """
    places: dict[str, Callable[[], bytes]] = {}
    source = Source(root, lambda name: places[name]())
    rows: list[tuple[str, str]] = []
    for shard in sorted(shards):
        lone, changed = shard == root, shard.stat().st_mtime_ns
        prefix = "" if lone else _prefix(root, shard)
        for found in _tar(shard, lone) if shard.suffix.lower() == ".tar" else _columns(shard):
            name = found.name if lone else f"{prefix}:{found.name.replace('/', ':')}"
            if found.problem:
                source.refused[name] = found.problem
            elif name in places:
                source.refused[f"{name} (again)"] = "the shard holds two of this name, the first was taken"
            else:
                places[name] = found.read
                source.sort(name, (found.size, changed))
                rows += [(name, found.label)] if found.label is not None else []
    source.table = _as_csv(rows) if rows else None
    return source.done()


@dataclass
class Found:
    """An image, or another file, of a shard: its name there, bytes, how to read it, its class, why it cannot be read."""

    name: str
    size: int
    read: Callable[[], bytes]
    label: str | None = None
    problem: str = ""


def _prefix(root: Path, shard: Path) -> str:
    """The shard's name under `root`; in front of it the folder `train`, `test` or `val` if it is a split's."""
    inner = shard.relative_to(root)
    words = [word for part in reversed(inner.parts) for word in re.split(r"[^a-z]+", part.lower())]
    split = next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), None)
    flat = inner.as_posix().replace("/", ":")
    return f"{split}/{flat}" if split else flat


def _as_csv(rows: Iterable[tuple[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("file", "label"))
    writer.writerows(rows)
    return text.getvalue()


# ---------------------------------------------------------------------------------------------------------------- tars


def _tar(shard: Path, lone: bool) -> list[Found]:
    """Its members, images with the class that a member of the same key says."""
    try:
        with tarfile.open(shard, "r:") as archive:
            members = [m for m in archive if not m.isdir()]
    except (OSError, tarfile.TarError, ValueError) as error:
        raise GencliError(f"{shard} is no plain tar: {error}", "write it again without compression") from error
    read = {m.name: partial(_part, shard, m.offset_data, m.size) for m in members if m.isreg()}
    labels = {_key(m.name): label for m in members if (label := _said(m, read.get(m.name))) is not None}
    root = common_root([m.name for m in members if not is_junk(m.name)]) if lone and not labels else ""
    return [
        Found(m.name.removeprefix(root), m.size, read.get(m.name, bytes), labels.get(_key(m.name)), _problem(m))
        for m in members
        if not labels or _extension(m.name) not in ("cls", "json")
    ]


def _problem(member: tarfile.TarInfo) -> str:
    if leads_out(member.name):
        return LEADS_OUT
    if not member.isreg() or member.issparse():
        return "a link or a special file, which is not followed"
    return f"larger than {LARGEST // 2**20} MiB" if member.size > LARGEST else ""


def _part(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _key(name: str) -> str:
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}"


def _extension(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[2].lower()


def _said(member: tarfile.TarInfo, read: Callable[[], bytes] | None) -> str | None:
    """The class that a member says for all of its key."""
    extension = _extension(member.name)
    if read is None or extension not in ("cls", "json") or member.size > LABEL_TEXT:
        return None
    text = read().decode("utf-8", "replace").strip()
    if extension == "cls":
        return text or None
    try:
        value = parsed(text)
    except ValueError:
        return None
    value = value.get("label") if isinstance(value, dict) else None
    return str(value) if isinstance(value, int | str) else None


# ------------------------------------------------------------------------------------------------------------- columns


def _columns(shard: Path) -> list[Found]:
    """The rows of a Parquet or Arrow file."""
    try:
        import pyarrow
    except ImportError:
        raise GencliError(f"{shard} needs pyarrow, which is not installed", "pip install 'gencli[shards]'") from None
    try:
        table = _Arrow(shard) if shard.suffix.lower() == ".arrow" else _Parquet(shard)
        image, label = _image_column(table.schema, shard), next((n for n in LABELS if n in table.schema.names), None)
        names = _class_names(table.schema, label)
        said = table.column(label) if label else [None] * table.rows
    except (OSError, ValueError, RecursionError, pyarrow.ArrowException) as error:
        raise GencliError(f"{shard} is damaged: {' '.join(str(error).split())[:200]}", "fetch it again") from error

    def labelled(value: Any) -> str | None:
        return (
            names[value]
            if isinstance(value, int) and 0 <= value < len(names)
            else None
            if value is None
            else str(value)
        )

    def read(row: int) -> bytes:
        value = table.value(image, row)
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content or len(content) > LARGEST:
            raise ValueError(f"larger than {LARGEST // 2**20} MiB" if content else "holds no bytes")
        return bytes(content)

    width = len(str(table.rows))
    return [Found(f"{row:0{width}}.png", 0, partial(read, row), labelled(said[row])) for row in range(table.rows)]


class _Arrow:
    """A stream of record batches, mapped into memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
        self.schema, self.rows = self._table.schema, self._table.num_rows

    def column(self, name: str) -> list[Any]:
        return self._table[name].to_pylist()

    def value(self, name: str, row: int) -> Any:
        return self._table[name][row].as_py()


class _Parquet:
    """Row groups, of which the last few that were read are held."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet

        self._file, self._lock = pyarrow.parquet.ParquetFile(path), threading.Lock()
        self.schema, self.rows = self._file.schema_arrow, self._file.metadata.num_rows
        sizes = [self._file.metadata.row_group(i).num_rows for i in range(self._file.num_row_groups)]
        self._where = [(group, row) for group, size in enumerate(sizes) for row in range(size)]
        self._group = lru_cache(GROUPS)(self._read)

    def _read(self, group: int, name: str) -> Any:
        return self._file.read_row_group(group, columns=[name])[name]

    def column(self, name: str) -> list[Any]:
        return self._file.read(columns=[name])[name].to_pylist()

    def value(self, name: str, row: int) -> Any:
        group, inner = self._where[row]
        with self._lock:
            return self._group(group, name)[inner].as_py()


def _image_column(schema: Any, shard: Path) -> str:
    """The column that holds encoded images."""
    import pyarrow.types as kinds

    def holds(field: Any) -> bool:
        inner = (
            field.type.field("bytes").type if kinds.is_struct(field.type) and "bytes" in _fields(field) else field.type
        )
        return kinds.is_binary(inner) or kinds.is_large_binary(inner)

    found = [field.name for field in schema if holds(field)]
    if not found:
        raise GencliError(
            f"{shard} has no column of images: {', '.join(schema.names)}", "a column holds encoded images"
        )
    return min(found, key=lambda name: IMAGES.index(name) if name in IMAGES else len(IMAGES))


def _fields(field: Any) -> list[str]:
    return [field.type.field(i).name for i in range(field.type.num_fields)]


def _class_names(schema: Any, label: str | None) -> Sequence[str]:
    """The names of classes, where `datasets` wrote them into the header."""
    about: Any = parsed((schema.metadata or {}).get(b"huggingface", b"{}"))
    for key in ("info", "features", label, "names"):
        about = about.get(key) if isinstance(about, dict) else None
    return [str(name) for name in about] if isinstance(about, list) else []
