"""Zips and arrays: names that lead out, links, bombs, members that overlap or lie, arrays of objects and of enormous shapes."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from fuzzing import Case, Maker

from hostile.pictures import hostile
from hostile.stock import Stock, damaged, photo

NAMES = (
    *(
        "../canary",
        "/tmp/canary.png",
        "..\\canary.png",
        "C:\\canary.png",
        "a/../../canary.png",
        "./a.png",
        "a//b.png",
        "//a.png",
    ),
    *(
        "a\0b.png",
        "a\nb.png",
        "\x1b[31m.png",
        "é.png",
        "e\u0301.png",
        "a" * 300 + ".png",
        "d/" * 500 + "a.png",
        " .png",
        ".png",
    ),
    *(
        "__MACOSX/a.png",
        "a.png/",
        "labels.csv",
        "labels.csv/",
        "aux.png",
        "a.png ",
        "..",
        ".",
        "train/a.png",
        "test/b.png",
    ),
)
TABLES = (
    *(
        "file,label\n" + "x" * 200000,
        "file,label\na.png,\0\n",
        "a,b\n",
        "",
        "file\n",
        "file,label,label\na.png,1,2\n",
        "\ufefffile,label\na.png,1",
    ),
    *(
        'file,label\n"a.png',
        "file,label\n" + "a.png,1\n" * 3,
        "file,label\na.png,1\na.png,2\n",
        "file,group\na.png,\n",
        "FILE;LABEL\na.png;1\n",
    ),
)


def _png(random: Random) -> bytes:
    held = io.BytesIO()
    photo(random).save(held, "PNG")
    return held.getvalue()


def _zip(members: list[tuple[str | zipfile.ZipInfo, bytes]], way: int = zipfile.ZIP_DEFLATED) -> bytes:
    held = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(held, "w", way) as archive:
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(name, data)
    return held.getvalue()


def _names(random: Random) -> bytes:
    return _zip([(name, _png(random)) for name in random.sample(NAMES, random.choice((1, 3, 8)))])


def _links(random: Random) -> bytes:
    link = zipfile.ZipInfo("a.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    device = zipfile.ZipInfo("d/b.png")
    device.external_attr = (random.choice((stat.S_IFIFO, stat.S_IFCHR, stat.S_IFDIR)) | 0o777) << 16
    return _zip([(link, b"../../canary"), (device, _png(random)), ("d/c.png", _png(random))][: random.choice((1, 3))])


def _bomb(random: Random) -> bytes:
    size = random.choice((1, 20, 100, 513)) * 2**20
    name = random.choice(("a.png", "labels.csv", "samples.json", "b.txt", "c.zip", "x.bmp"))
    return _zip([(name, bytes(size)), ("whole.png", _png(random))][: random.choice((1, 2))])


def _nested(random: Random) -> bytes:
    made = _zip([("a.png", _png(random))])
    for _ in range(random.choice((1, 5))):
        made = _zip([("inner.zip", made), ("inner.png", made)])
    return made


def _overlapping(random: Random) -> bytes:
    """Many members of the directory that are one and the same."""
    held = io.BytesIO(_zip([("a.png", bytes(random.choice((10**4, 10**6))))]))
    with zipfile.ZipFile(held, "a") as archive:
        (first,) = archive.infolist()
        for i in range(random.choice((3, 200))):
            made = zipfile.ZipInfo(f"{i}.png")
            for key in ("header_offset", "CRC", "compress_size", "file_size", "compress_type", "flag_bits"):
                setattr(made, key, getattr(first, key))
            archive.filelist.append(made)
            archive.NameToInfo[made.filename] = made
        archive._didModify = True
    return held.getvalue()


def _lying(random: Random) -> bytes:
    """Sizes, checksums, methods and flags in the directory that are not so."""
    made = bytearray(_zip([("a.png", _png(random)), ("b.png", _png(random)), ("labels.csv", b"file,label\na.png,1\n")]))
    at = made.find(b"PK\1\2")
    offset, size = random.choice(
        ((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2), (38, 4), (42, 4), (4, 2), (6, 2))
    )
    made[at + offset : at + offset + size] = random.choice(
        (b"\xff" * size, b"\0" * size, random.randbytes(size), b"\1" + b"\0" * (size - 1))
    )
    return bytes(made)


def _twice(random: Random) -> bytes:
    return _zip(
        [("a.png", _png(random))] * 3
        + [("A.PNG", _png(random)), ("e\u0301.png", _png(random)), ("é.png", _png(random))]
    )


def _table(random: Random) -> bytes:
    table = random.choice(TABLES)
    raw = random.choice(
        (table.encode(), table.encode("utf-16"), b"\xff" + table.encode(), b"file,label\n" + random.randbytes(200))
    )
    return _zip([("labels.csv", raw), ("a.png", _png(random)), ("b.png", _png(random))])


def _many(random: Random) -> bytes:
    return _zip(
        [(f"{i}.{random.choice(('png', 'txt'))}", b"") for i in range(random.choice((500, 3000)))], zipfile.ZIP_STORED
    )


def _pictures(random: Random) -> bytes:
    way = random.choice((zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA, zipfile.ZIP_DEFLATED))
    return _zip([(f"{i}.png", hostile(random)[0]) for i in range(3)], way)


def _noise(random: Random) -> bytes:
    return damaged(random, _zip([("a.png", _png(random)), ("b/c.png", _png(random))]))


def _no_zip(random: Random) -> bytes:
    return random.choice(
        (
            b"",
            b"PK\5\6" + bytes(18),
            b"PK\5\6" + b"\xff" * 18,
            b"PK\3\4" + random.randbytes(50),
            b"Rar!\x1a\7\0",
            bytes(10**5),
        )
    )


WAYS: dict[str, Callable[[Random], bytes]] = {
    **{
        "names": _names,
        "links": _links,
        "bomb": _bomb,
        "nested": _nested,
        "overlapping": _overlapping,
        "lying": _lying,
    },
    **{"twice": _twice, "labels.csv": _table, "many": _many, "pictures": _pictures, "noise": _noise, "no zip": _no_zip},
}


def framed(data: bytes) -> bool:
    """Whether there is a directory of members."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return bool(archive.infolist())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError, struct.error):
        return False


# ------------------------------------------------------------------------------------------------------------------- arrays

HEADERS = (
    *(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000000000, 8, 8, 1)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-1, 8, 8, 1)}",
    ),
    *(
        "{'descr': '|O', 'fortran_order': False, 'shape': (2,)}",
        "{'descr': '<f8', 'fortran_order': True, 'shape': (4, 8, 8, 1)}",
    ),
    *(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 0, 0, 1)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 99999999, 99999999, 3)}",
    ),
    *(
        "{'descr': [('a', '|u1'), ('b', '|O')], 'fortran_order': False, 'shape': (4,)}",
        "__import__('os').mkdir('canary')",
        "(" * 9000,
        "{}",
        "",
    ),
    *(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 8, 8, 3), 'x': 1}",
        "{'descr': '|u1', 'fortran_order': 1, 'shape': [4]}",
        "3" * 9000,
    ),
    *(
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 8, 8, True)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (" + "1," * 100 + ")}",
    ),
)


def npy(header: str, body: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """An array with any header."""
    text = header.encode("latin1", "replace") + b"\n"
    return (
        b"\x93NUMPY"
        + bytes(version)
        + struct.pack("<H" if version == (1, 0) else "<I", len(text) % 65536)
        + text
        + body
    )


def array(random: Random) -> tuple[bytes, str]:
    """The bytes of a hostile `arr_0.npy`, and what is wrong."""
    way = random.randrange(4)
    if way == 0:
        return npy(random.choice(HEADERS), bytes(512), random.choice(((1, 0), (2, 0), (3, 0), (9, 9)))), "header"
    held = io.BytesIO()
    if way == 1:
        from saved import Creates

        np.save(held, np.array([Creates(Path("canary"))] * 2, dtype=object), allow_pickle=True)
        return held.getvalue(), "objects with code"
    shape = random.choice(
        ((4, 8, 8, 1), (4, 8, 8, 3), (0, 8, 8, 1), (4, 8, 8, 2), (4,), (4, 8, 8), (4, 1, 1, 1), (1, 8, 8, 1))
    )
    kind: Any = random.choice(("u1", "u1", "f4", "i8", "U3", "?", "c8"))
    np.save(held, np.zeros(shape, kind))
    return (damaged(random, held.getvalue()), "noise") if way == 2 else (held.getvalue(), "array")


def makers(stock: Stock) -> dict[str, Maker]:
    """Zips of images, and `.npz`."""

    def zips(random: Random, cwd: Path) -> Case:
        what = random.choice(list(WAYS))
        data = WAYS[what](random)
        (cwd / "z.zip").write_bytes(data)
        stock.recipe(cwd)
        check = ("data", "check", "z.zip", "--image-size", "8")
        options: list[tuple[str, ...]] = [
            check,
            check,
            (*check, "--preview", "--group-by", random.choice(("csv", "folder", "prefix"))),
        ]
        options += [("train", "t.toml", "--data", "z.zip", "--steps", "1", "--batch-size", "1")]
        options += [("eval", "fid", "--samples", "z.zip", "--data", "digits", "--features", "random")]
        options += [("sample", "sdedit", "-c", "r", "--input", "z.zip", "-n", "1", "--fit", "crop")]
        args = random.choice(options)
        if args[0] == "sample":
            stock.run(cwd, "ddpm")
        return Case(args, framed(data), f"zip: {what}")

    def arrays(random: Random, cwd: Path) -> Case:
        inner, what = array(random)
        name = random.choice(("arr_0.npy", "arr_0.npy", "arr_0.npy", "mu.npy", "../canary.npy"))
        data = _zip([(name, inner), ("sigma.npy", inner)], random.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)))
        data = damaged(random, data) if random.random() < 0.15 else data
        (cwd / "a.npz").write_bytes(data)
        args = random.choice(
            (
                ("eval", "fid", "--samples", "a.npz", "--data", "digits", "--features", "random"),
                ("eval", "fid", "--samples", "a.npz", "--data", "a.npz", "--features", "pixels"),
                ("eval", "fid", "-c", "r", "-n", "16", "--data", "a.npz", "--features", "random"),
            )
        )
        if "-c" in args:
            stock.run(cwd)
        return Case(args, framed(data), f"npz: {what}")

    return {"zip": zips, "npz": arrays}
