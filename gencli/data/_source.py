"""What lies in a folder or a zip: the images, and what is not one and why. Zips are read in memory, never extracted."""

from __future__ import annotations

import lzma
import os
import stat
import unicodedata
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

from gencli.errors import GencliError
from gencli.files import read_bytes

EXTENSIONS = frozenset(
    (
        *("png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "avif", "bmp", "dib", "gif", "tif", "tiff"),
        *("ppm", "pgm", "pbm", "pnm", "tga", "jp2", "j2k", "ico", "pcx"),
    )
)
UNSUPPORTED = {
    **dict.fromkeys(("heic", "heif"), "HEIC is not supported: convert it to PNG or JPEG"),
    **dict.fromkeys(("cr2", "cr3", "nef", "arw", "dng", "raf", "orf", "rw2"), "raw photographs are not supported"),
    **dict.fromkeys(("svg", "eps", "ai", "pdf", "psd", "xcf", "jxl", "exr", "hdr"), "this format is not supported"),
}
LEADS_OUT = "its name leads out of the archive"
UNREADABLE = (
    OSError,
    ValueError,
    RuntimeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)  # of an archive
LARGEST = 512 * 2**20  # bytes of one file; what is larger is reported, not read

Stamp = tuple[int, int]
"""Changes whenever a file may have changed: size and time of change, for a zip's member size and checksum."""


@dataclass
class Source:
    """The files under a path, names relative to it with `/`, sorted.

    Args:
        path: the folder or zip.
        stamps: candidates for decoding, by name.
        refused: images that cannot be read whatever they hold, with the reason.
        junk: number of files that operating systems leave behind.
        others: number of other files by extension.
        table: text of `labels.csv` at the top, if there.
        read: the bytes of a candidate.
        close: lets go of the zip.
    """

    path: Path
    read: Callable[[str], bytes]
    stamps: dict[str, Stamp] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    junk: int = 0
    others: Counter[str] = field(default_factory=Counter)
    table: str | None = None
    close: Callable[[], None] = lambda: None

    def sort(self, name: str, stamp: Stamp) -> None:
        """Count a file as junk, image, unsupported image or other."""
        extension = PurePosixPath(name).suffix.lower().lstrip(".")
        if is_junk(name):
            self.junk += 1
        elif extension in UNSUPPORTED:
            self.refused[name] = UNSUPPORTED[extension]
        elif extension not in EXTENSIONS:
            self.others[f".{extension}" if extension else "without extension"] += 1
        elif stamp[0] > LARGEST:
            self.refused[name] = f"larger than {LARGEST // 2**20} MiB"
        else:
            self.stamps[name] = stamp

    def done(self) -> Source:
        """Put everything into one order, whatever order the disk gave."""
        self.stamps = dict(sorted(self.stamps.items()))
        self.refused = dict(sorted(self.refused.items()))
        return self


def is_junk(name: str) -> bool:
    """Hidden files and folders, macOS and Windows leftovers: `._x`, `.DS_Store`, `__MACOSX`, `Thumbs.db`, `desktop.ini`."""
    parts = name.split("/")
    return any(p.startswith(".") or p == "__MACOSX" for p in parts) or parts[-1].lower() in ("thumbs.db", "desktop.ini")


def folder_source(root: Path) -> Source:
    """List a folder and what is below it."""
    places: dict[str, Path] = {}

    def read(name: str) -> bytes:
        return read_bytes(places[name], LARGEST)

    source = Source(root, read)
    problems: list[OSError] = []
    seen: set[tuple[int, int]] = set()
    for folder, inner, files in os.walk(root, followlinks=True, onerror=problems.append):
        about = Path(folder).stat()
        if (about.st_dev, about.st_ino) in seen:  # a link that leads back into what was already walked
            inner.clear()
            continue
        if about.st_ino:
            seen.add((about.st_dev, about.st_ino))
        inner.sort()
        for file in files:
            place = Path(folder, file)
            raw = place.relative_to(root).as_posix()
            name = unicodedata.normalize("NFC", raw)
            name = raw if name in places else name  # a disk may hold both spellings of é
            try:
                found = place.stat()
            except OSError as error:
                source.refused[name] = error.strerror or "cannot be opened"
                continue
            if not stat.S_ISREG(found.st_mode):
                source.refused[name] = "a pipe or a device, which may have no end"
                continue
            if name == "labels.csv":
                source.table = _table(partial(read_bytes, place), place)
                continue
            places[name] = place
            source.sort(name, (found.st_size, found.st_mtime_ns))
    for problem in problems:
        source.refused[str(problem.filename)] = f"folder cannot be listed: {problem.strerror}"
    return source.done()


def zip_source(path: Path) -> Source:
    """List a zip.

    Raises:
        GencliError: it is damaged.
    """
    try:
        archive = zipfile.ZipFile(path)
        members = [m for m in archive.infolist() if not m.is_dir()]
    except UNREADABLE as error:
        raise GencliError(f"{path} is damaged: {error}", "make the zip again") from error
    names = [unicodedata.normalize("NFC", m.filename.replace("\\", "/")) for m in members]
    root = common_root([name for name in names if not is_junk(name)])
    places: dict[str, zipfile.ZipInfo] = {}

    def read(name: str) -> bytes:
        with archive.open(places[name]) as file:
            data = file.read(LARGEST + 1)  # never trust the size that the archive claims
        if len(data) > LARGEST:
            raise ValueError(f"larger than {LARGEST // 2**20} MiB")
        return data

    source = Source(path, read, close=archive.close)
    for full, member in zip(names, members, strict=True):
        if leads_out(full):
            source.refused[full] = LEADS_OUT
            continue
        name = full.removeprefix(root)
        if member.flag_bits & 1 and not is_junk(name):
            source.refused[full] = "encrypted"
            continue
        if name in places:
            source.refused[f"{name} (again)"] = "the archive holds two files of this name, the first was taken"
            continue
        places[name] = member
        if name == "labels.csv":
            source.table = _table(lambda: read("labels.csv"), path / name)
            continue
        source.sort(name, (member.file_size, member.CRC))
    return source.done()


def leads_out(name: str) -> bool:
    """Whether a member of an archive claims a place outside it."""
    return name.startswith("/") or ".." in name.split("/") or ":" in name.split("/")[0]


def common_root(names: list[str]) -> str:
    """`photos/` if every member lies in the folder `photos`, as when a folder was zipped whole."""
    roots = {name.split("/", 1)[0] if "/" in name else "" for name in names}
    only = roots.pop() if len(roots) == 1 else ""
    return f"{only}/" if only and only != ".." else ""


def _table(read: Callable[[], bytes], place: Path) -> str:
    try:
        return read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise GencliError(f"{place} is not UTF-8 text: {error.reason}", "save it as UTF-8") from error
    except UNREADABLE as error:
        raise GencliError(f"{place} is damaged: {error}", "write it again") from error
