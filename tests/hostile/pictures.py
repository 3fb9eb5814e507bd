"""Image files: cut short, of enormous or no size, of another format than their name, animated, with bad metadata."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import Case, Maker

from hostile.stock import Stock, damaged, photo

MODES = {
    "PNG": ("RGB", "L", "RGBA", "LA", "1", "P", "I;16", "I;16"),
    "JPEG": ("RGB", "L", "CMYK", "YCbCr"),
    "GIF": ("L", "P", "RGB"),
    "BMP": ("RGB", "L", "1", "RGBA"),
    "TIFF": ("RGB", "L", "CMYK", "F", "I", "I;16", "1", "LA"),
    "WEBP": ("RGB", "RGBA"),
    "PPM": ("RGB", "L", "1", "I"),
    "TGA": ("RGB", "L", "RGBA"),
    "PCX": ("RGB", "L", "1"),
    "ICO": ("RGBA", "RGB"),
    "JPEG2000": ("RGB", "L"),
}
SIDES = (0, 1, 2**15, 65535, 65536, 10**6, 2**31 - 1, 2**31, 2**32 - 1)
EXTENSIONS = (
    "png",
    "jpg",
    "gif",
    "bmp",
    "tiff",
    "webp",
    "ppm",
    "tga",
    "pcx",
    "ico",
    "jp2",
    "txt",
    "svg",
    "heic",
    "PNG",
)


def saved(random: Random, kind: str, **more: Any) -> bytes:
    """A small picture of a format."""
    mode = random.choice(MODES[kind])
    image = photo(random, "L" if mode == "P" else mode).convert("P") if mode == "P" else photo(random, mode)
    held = io.BytesIO()
    image.save(held, kind, **more)
    return held.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    """One of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(head: bytes, body: bytes, more: bytes = b"") -> bytes:
    """A PNG of any header and any body."""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + more + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _png_size(random: Random) -> bytes:
    head = struct.pack(
        ">IIBBBBB",
        random.choice(SIDES),
        random.choice(SIDES),
        random.choice((1, 8, 16)),
        random.choice((0, 2, 3, 6, 9)),
        0,
        0,
        0,
    )
    return png(head, zlib.compress(bytes(100)))


def _bomb(random: Random) -> bytes:
    """Few bytes, many pixels."""
    side = random.choice((8000, 11000, 11585, 12000, 20000))
    packed = zlib.compressobj(9)
    body = b"".join(packed.compress(bytes(side * 64)) for _ in range(side // 64 + 2)) + packed.flush()
    return png(struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0), body)


def _text_bomb(random: Random) -> bytes:
    name = random.choice((b"zTXt", b"iTXt", b"iCCP"))
    key = b"a\0\1\0\0\0" if name == b"iTXt" else b"a\0\0"
    more = chunk(name, key + zlib.compress(bytes(30 * 2**20), 9))
    return png(struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0), zlib.compress(bytes(72)), more)


def _other_size(random: Random) -> bytes:
    """Formats whose header is a few numbers."""
    w, h = random.choice(SIDES), random.choice(SIDES)
    return random.choice(
        (
            b"P6 %d %d 255\n" % (w, h),
            b"P5 %d %d 65536\n" % (w, h) + bytes(64),
            b"P1 " + b"9" * 1000,
            b"Pf %d %d -1.0\n" % (w, h) + bytes(64),
            b"GIF89a" + struct.pack("<HHBBB", w % 65536, h % 65536, 0xF7, 0, 0) + bytes(900),
            b"BM"
            + struct.pack("<IHHIIIIHHIIIIII", 99, 0, 0, 54, 40, w % 2**32, h % 2**32, 1, 24, 0, 0, 0, 0, 0, 0)
            + bytes(64),
            b"\0\0\2\0\0\0\0\0\0\0\0\0" + struct.pack("<HHBB", w % 65536, h % 65536, 24, 0) + bytes(64),
            b"\0\0\1\0\1\0" + struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, 2**31, 22) + bytes(64),
        )
    )


def _animated(random: Random) -> bytes:
    held = io.BytesIO()
    frames = [photo(random, "RGB") for _ in range(random.choice((2, 5, 60)))]
    frames[0].save(held, random.choice(("GIF", "PNG", "WEBP", "TIFF")), save_all=True, append_images=frames[1:])
    return held.getvalue()


def _metadata(random: Random) -> bytes:
    """EXIF and colour profiles that are none."""
    exif = b"Exif\0\0" + random.choice(
        (
            b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0"
            + struct.pack("<HH", random.choice((0, 3, 6, 9, 65535)), 0)
            + bytes(4),
            b"MM\0*\0\0\0\x08\xff\xff" + random.randbytes(100),
            b"II*\0\xff\xff\xff\xff",
            random.randbytes(40),
            b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f" + bytes(8),
        )
    )
    kind = random.choice(("JPEG", "PNG", "WEBP", "TIFF"))
    more = (
        {"exif": exif} if random.random() < 0.7 else {"icc_profile": random.randbytes(random.choice((0, 3, 128, 5000)))}
    )
    try:
        return saved(random, kind, **more)
    except Exception:  # what Pillow does not even write
        return saved(random, kind)


def _odd_numbers(random: Random) -> bytes:
    """Pixels that are no brightness."""
    import numpy as np
    from PIL import Image

    value = random.choice((float("nan"), float("inf"), -1.0, 1e30, 0.5, 1e-40))
    held = io.BytesIO()
    Image.fromarray(np.full((8, 8), value, np.float32)).save(held, "TIFF")
    return held.getvalue()


def _small(random: Random) -> bytes:
    return random.choice(
        (
            b"",
            b"\x89PNG\r\n\x1a\n",
            b"\xff\xd8\xff",
            b"GIF89a",
            b"RIFF\xff\xff\xff\xffWEBPVP8X",
            b"II*\0\x08\0\0\0",
            b"\0" * 9,
            b"<svg/>",
        )
    )


def _any(random: Random) -> bytes:
    return saved(random, random.choice(list(MODES)))


def _thin(random: Random) -> bytes:
    held = io.BytesIO()
    photo(random, "L", random.choice(((1, 1), (1, 4000), (4000, 1), (65500, 1)))).save(
        held, random.choice(("PNG", "JPEG", "BMP"))
    )
    return held.getvalue()


WAYS: dict[str, Callable[[Random], bytes]] = {
    "damaged": lambda random: damaged(random, _any(random)),
    "more damaged": lambda random: damaged(random, damaged(random, _any(random))),
    "a PNG of another size": _png_size,
    "another size": _other_size,
    "a bomb": _bomb,
    "a bomb of text": _text_bomb,
    "animated": _animated,
    "metadata": _metadata,
    "odd numbers": _odd_numbers,
    "nothing": _small,
    "good": _any,
    "thin": _thin,
}
WEIGHTS = (8, 4, 4, 6, 1, 1, 2, 4, 2, 2, 4, 3)


def hostile(random: Random) -> tuple[bytes, str]:
    """A file, and what it is."""
    what = random.choices(list(WAYS), WEIGHTS)[0]
    return WAYS[what](random), what


def framed(data: bytes) -> bool:
    """Whether a header says what format it is and how large."""
    from PIL import Image

    try:
        Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
        with Image.open(io.BytesIO(data)):
            return True
    except Exception:  # of bytes that nobody wrote
        return False
    finally:
        Image.MAX_IMAGE_PIXELS = before


def makers(stock: Stock) -> dict[str, Maker]:
    """Folders of images, and single ones."""

    def several(random: Random, cwd: Path) -> Case:
        folder = cwd / "photos"
        folder.mkdir()
        whats, good = [], False
        for i in range(random.choice((1, 1, 3))):
            data, what = hostile(random)
            good |= framed(data)
            whats.append(what)
            (folder / f"{i}.{random.choice(EXTENSIONS)}").write_bytes(data)
        if random.random() < 0.4:
            photo(random).save(folder / "whole.png")
            good = True
        stock.recipe(cwd)
        check = ("data", "check", "photos", "--image-size", "8")
        args = random.choice(
            (
                check,
                (*check, "--preview"),
                (*check, "--fit", random.choice(("pad", "stretch")), "--background", "#10203040"),
                ("train", "t.toml", "--data", "photos", "--steps", "1", "--batch-size", "1"),
                ("eval", "fid", "--samples", "photos", "--data", "digits", "--features", "random"),
            )
        )
        return Case(args, good, f"images: {', '.join(whats)}")

    def one(random: Random, cwd: Path) -> Case:
        data, what = hostile(random)
        name = f"a.{random.choice(EXTENSIONS)}"
        (cwd / name).write_bytes(data)
        stock.run(cwd, "ddpm" if (edits := random.random() < 0.6) else "vae")
        fit = random.choice(((), ("--fit", "crop"), ("--fit", "pad"), ("--fit", "stretch")))
        edit = ("sample", "sdedit", "-c", "r", "--input", name, "-n", "1", *fit)
        keep = ("sample", "repaint", "-c", "r", "--input", "test:0", "--keep", name, "-n", "1")
        hole = (
            "sample",
            "dps",
            "-c",
            "r",
            "--input",
            "test:0",
            "--operator",
            "inpaint",
            "--operator.mask",
            name,
            "-n",
            "1",
        )
        between = (("sample", "r", "--between", f"{name},1", "-n", "2"), ("sample", "r", "--traverse", name, "-n", "2"))
        return Case(random.choice((edit, edit, keep, hole) if edits else between), framed(data), f"image: {what}")

    return {"images": several, "image": one}
