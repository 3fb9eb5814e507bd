"""Decoded folders on disk: `$GENCLI_HOME/cache/folders/KEY/{train,test}.npy` and what was found, written in one step.

The key is a hash of the settings and of every file's content, so a moved folder finds its pixels again and a changed one
does not. Content hashes are kept by (relative path, size, time of change) in a file per folder path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gencli import files
from gencli.data._source import Source
from gencli.errors import GencliError
from gencli.files import as_size, atomic_json, explained, replace, sync_folder
from gencli.home import home

Progress = Callable[[str, int, int], None]

IN_MEMORY = 256 * 2**20  # bytes; larger splits stay on disk, mapped
_LIMIT = 20.0  # GB
_FRESH = 2_000_000_000  # ns; a file changed so lately may change again within one tick of the file system's clock
_CHUNK = 256


def folder() -> Path:
    """Where decoded folders are kept."""
    return home() / "cache" / "folders"


def limit() -> int:
    """The most that decoded folders, and that kept features, may take together, in bytes: `$GENCLI_CACHE_GB`, else 20 GB."""
    given = os.environ.get("GENCLI_CACHE_GB", "")
    try:
        return int(float(given or _LIMIT) * 1e9)
    except ValueError:
        raise GencliError(f"GENCLI_CACHE_GB is '{given}'", "give a number of gigabytes") from None


def workers() -> int:
    """Threads for decoding; Pillow lets go of the interpreter while it decodes."""
    return min(8, os.cpu_count() or 1)


def chunks(items: list[Any]) -> Iterator[list[Any]]:
    """Short runs of a list, so that results never pile up."""
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


# ------------------------------------------------------------------------------------------------------- content hashes


def digests(source: Source, progress: Progress | None) -> dict[str, str]:
    """The content hash of every candidate, by name; a file that cannot be read moves to `source.refused`."""
    place = folder() / f"stat-{_short(str(source.path.absolute()).encode('utf-8', 'surrogatepass'))}.json"
    known = _read_json(place) or {}
    now = time.time_ns()
    found = {name: known[name][2] for name, stamp in source.stamps.items() if known.get(name, [])[:2] == list(stamp)}
    missing = [name for name in source.stamps if name not in found]
    done = 0
    with ThreadPoolExecutor(workers()) as pool:
        for names in chunks(missing):
            for name, (digest, problem) in zip(names, pool.map(lambda n: _digest(source, n), names), strict=True):
                done += 1
                if problem:
                    source.refused[name] = problem
                    del source.stamps[name]
                else:
                    found[name] = digest
            if progress is not None:
                progress(f"reading {source.path.name}", done, len(missing))
    if missing:
        settled = {n: [*source.stamps[n], d] for n, d in found.items() if _settled(source, source.stamps[n], now)}
        atomic_json(place, settled)
    return {name: found[name] for name in source.stamps}


def _settled(source: Source, stamp: tuple[int, int], now: int) -> bool:
    changed = stamp[1] if source.path.is_dir() else source.path.stat().st_mtime_ns
    return changed < now - _FRESH


def _digest(source: Source, name: str) -> tuple[str, str]:
    try:
        return _short(source.read(name)), ""
    except Exception as error:  # of any archive or disk; the file is reported with it
        return "", f"{error or type(error).__name__}"


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def key_of(settings: Any, index: dict[str, str]) -> str:
    """The name of a decoded folder: 20 hexadecimal digits."""
    text = json.dumps([settings, sorted(index.items())], sort_keys=True)  # escapes what UTF-8 cannot hold
    return hashlib.sha256(text.encode()).hexdigest()[:20]


# --------------------------------------------------------------------------------------------------------- decoded pixels


def load(key: str) -> dict[str, Any] | None:
    """What was found when `key` was decoded, if it is here and whole; marks it as used."""
    place = folder() / key
    found = _read_json(place / "found.json")
    if found is None or found.get("key") != key:
        return None
    for split, shape in found["shapes"].items():
        path = place / f"{split}.npy"
        if not path.is_file() or path.stat().st_size < int(np.prod(shape)) + 64:
            return None
    with contextlib.suppress(OSError):  # a read-only cache is still a cache
        os.utime(place)
    return found


def pixels(key: str, split: str) -> np.ndarray:
    """The items of a split: in memory if small, else mapped."""
    path = folder() / key / f"{split}.npy"
    return np.load(path, mmap_mode="r" if path.stat().st_size > IN_MEMORY else None)


@contextlib.contextmanager
def building(key: str, size: int) -> Iterator[Path]:
    """A folder under a temporary name that becomes `key`'s when the block succeeds; makes room for `size` bytes first."""
    target = folder() / key
    if size > limit():
        raise GencliError(
            f"the decoded images need {as_size(size)}, the cache may hold {as_size(limit())}",
            "choose a smaller image_size, or set GENCLI_CACHE_GB to more",
        )
    temporary = folder() / f".{key}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with explained(target):
            make_room(size)
            temporary.mkdir(parents=True)
            yield temporary
            sync_folder(temporary)
            if load(key) is None:  # else another process was faster, with the same result
                if target.exists():
                    shutil.rmtree(target)  # damaged
                replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_room(size: int) -> None:
    """Delete the decoded folders used longest ago until `size` more bytes fit."""
    if not folder().is_dir():
        return
    kept = [place for place in folder().iterdir() if place.is_dir() and place.name[0] != "."]
    files.make_room(kept, limit() - size)


def write_rows(path: Path, stage: np.ndarray, rows: list[int], grey: bool) -> tuple[int, ...]:
    """Some rows of `stage` (N, 3, H, W) as an .npy file, in one plane if `grey`; returns its shape."""
    shape = (len(rows), 1 if grey else 3, *stage.shape[2:])
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for part in chunks(rows):
            block = stage[part]
            file.write(np.ascontiguousarray(luma(block) if grey else block).tobytes())
        _sync(file)
    return shape


def luma(rgb: np.ndarray) -> np.ndarray:
    """`(N, 3, H, W)` to `(N, 1, H, W)` as Pillow does it (ITU-R 601); equal planes stay what they are."""
    weights = np.array([19595, 38470, 7471], np.uint32)[:, None, None]
    return (((rgb * weights).sum(1, keepdims=True, dtype=np.uint32) + 0x8000) >> 16).astype(np.uint8)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None when it is not there or damaged: a cache is made again."""
    try:
        value = files.parsed(path.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
