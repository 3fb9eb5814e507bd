"""Writing files so that a reader sees the old one or the new one, never half: temporary name, fsync, rename.

A full disk and a read-only folder become a `GencliError` with exit code 1 that names the path. What is read may be anybody's:
`understood` turns whatever is wrong with it into one line.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import secrets
import shutil
import stat
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from gencli import crash
from gencli.errors import GencliError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_CLOSED = {errno.EROFS, errno.EACCES, errno.EPERM}
_TRIES = 6
_MOST_TEXT = 2**26  # bytes of a file of settings or facts
_UNLIKE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)  # values of another shape


def atomic_write(path: str | Path, data: bytes) -> Path:
    """Write `data` to `path`, replacing what is there in one step; folders on the way are made.

    Raises:
        GencliError: code 1; the disk is full, the folder is read-only, or the system says no otherwise.
    """
    with atomic_path(path) as temporary:
        crash.point("file.half", lambda: temporary.write_bytes(data[: len(data) // 2]))
        temporary.write_bytes(data)
    return Path(path)


def atomic_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented UTF-8 JSON with a final newline; NaN and infinity are refused."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return atomic_write(path, text.encode("utf-8", "surrogatepass"))


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name in the folder of `path`; what the block writes there is renamed to `path` if the block succeeds."""
    target = Path(path)
    temporary = target.with_name(f".{target.name[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            crash.point("file.written")
            _sync(temporary)
            crash.point("file.synced")
            replace(temporary, target)
            crash.point("file.renamed")
            sync_folder(target.parent)
            crash.point("file.kept")
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)


def replace(source: Path, target: Path) -> None:
    """Rename over `target`, tried a few times: on Windows a virus scanner or a reader may hold the target for a moment."""
    for attempt in range(_TRIES):
        try:
            source.replace(target)
            return
        except PermissionError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.01 * 2**attempt)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a power cut; Windows has no such call."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EROFS):  # network file systems that cannot
            raise
    finally:
        os.close(handle)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def explained(path: str | Path) -> Iterator[None]:
    """Turn an `OSError` of the block, which writes `path`, into one clear line."""
    try:
        yield
    except OSError as error:
        raise explain(error, Path(path)) from error


@contextlib.contextmanager
def appended(path: Path) -> Iterator[TextIO]:
    """A text file to add lines to. A link that leads out of its folder is refused: the folder may be anybody's."""
    if path.is_symlink() and not path.resolve().is_relative_to(path.parent.resolve()):
        raise GencliError(f"{path} is a link to {path.resolve()}, to which nothing is added", "put a file in its place")
    with explained(path), path.open("a", encoding="utf-8") as handle:
        yield handle


def explain(error: OSError, path: Path) -> GencliError:
    """What went wrong in writing `path`, and the next step."""
    if error.errno in _FULL:
        return GencliError(
            f"disk full while writing {path}: {_free(path)}",
            "free some space or choose another disk, then run the command again; what was there before is untouched",
            code=1,
        )
    if error.errno in _CLOSED:
        return GencliError(
            f"cannot write {path}: {(error.strerror or 'no permission').lower()}",
            "choose a folder that you may write to",
            code=1,
        )
    return GencliError(f"cannot write {path}: {error.strerror or error}", "choose another path", code=1)


@contextlib.contextmanager
def understood(path: str | Path, hint: str, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn what a block raises that reads `path`, which anybody may have written, into one clear line."""
    unlike: tuple[type[Exception], ...] = (*_UNLIKE, *also)
    try:
        yield
    except OSError as error:
        raise GencliError(f"{path} cannot be read: {error.strerror or error}", hint) from error
    except unlike as error:
        words = " ".join(str(error).split())[:200]
        raise GencliError(f"{path} is damaged: {type(error).__name__}: {words}", hint) from error


def read_bytes(path: Path, most: int = _MOST_TEXT) -> bytes:
    """What is in a file of at most so many bytes; anything that could be read without end is refused.

    Raises:
        ValueError: it is a pipe or a device, or larger.
        OSError: it cannot be read.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("it is no file")
    if found.st_size > most:
        raise ValueError(f"it has {as_size(found.st_size)}, the most is {as_size(most)}")
    return path.read_bytes()


def parsed(text: str | bytes, finite: bool = False) -> Any:
    """The JSON in a text; what is nested too deeply to be read is a ValueError, as everything else that is no JSON.

    With `finite` so is a number that is none, which Python reads although JSON has no such thing: `atomic_json` writes none.
    """
    hooks: dict[str, Any] = {"parse_constant": _number, "parse_float": _number} if finite else {}
    try:
        return json.loads(text, **hooks)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _number(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"it holds the number {text[:40]}")
    return value


def read_json(path: Path) -> Any:
    """The JSON in a file that `atomic_json` wrote; raises as `read_bytes` and `parsed` do."""
    return parsed(read_bytes(path).decode("utf-8"), finite=True)


def _free(path: Path) -> str:
    place = next((parent for parent in path.absolute().parents if parent.exists()), Path.cwd())
    return f"{as_size(shutil.disk_usage(place).free)} free in {place}"


def make_room(places: Sequence[Path], most: int) -> None:
    """Delete the files and folders used longest ago until they take at most `most` bytes together."""
    times: dict[Path, float] = {}
    for place in places:
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            times[place] = place.stat().st_mtime
    sizes = {place: space(place).size for place in times}
    over = sum(sizes.values()) - most
    for place in sorted(times, key=times.__getitem__):
        if over <= 0:
            return
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)  # Windows keeps what another run has mapped
        else:
            with contextlib.suppress(OSError):
                place.unlink(missing_ok=True)
        over -= 0 if place.exists() else sizes[place]


@dataclass(frozen=True)
class Space:
    """Bytes on disk: of files, each counted once however many names it has, and what deleting them would free."""

    size: int
    freed: int


def space(*paths: Path) -> Space:
    """The space of files and whole folders; a file that has a name elsewhere (a hard link) would stay and free nothing."""
    names: Counter[tuple[int, int]] = Counter()
    facts: dict[tuple[int, int], os.stat_result] = {}
    for path in paths:
        for file in _files(path):
            with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                found = file.lstat()
                if stat.S_ISREG(found.st_mode):
                    key = (found.st_dev, found.st_ino)
                    names[key] += 1
                    facts[key] = found
    gone = sum(facts[key].st_size for key, count in names.items() if facts[key].st_nlink <= count)
    return Space(sum(found.st_size for found in facts.values()), gone)


def _files(path: Path) -> Iterator[Path]:
    if path.is_symlink() or not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):
        yield from (Path(folder) / name for name in names)


def inside(folder: Path) -> list[Path]:
    """What is in a folder, by name; nothing where there is no folder."""
    return sorted(folder.iterdir()) if folder.is_dir() else []


def as_size(count: float) -> str:
    """A number of bytes for people: `3.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
