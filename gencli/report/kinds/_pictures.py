"""Saving of Pillow images, still and moving, in one step."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli.errors import GencliError
from gencli.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

INK, FAINT = (0, 0, 0), (110, 110, 110)
_LINE = 16  # pixels that a line of text takes
_FORMATS = {".png": "PNG", ".webp": "WEBP", ".gif": "GIF", ".jpg": "JPEG", ".jpeg": "JPEG"}
_REST = 1.5  # seconds that the last frame stands


def save_picture(path: str | Path, image: Image) -> Path:
    """Write one picture, without loss for `.png` and `.webp`; the suffix chooses the format."""
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise GencliError(f"cannot draw to {path.name}", f"choose one of {', '.join(_FORMATS)}")
    out = io.BytesIO()
    image.save(out, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return atomic_write(path, out.getvalue())


def beside(images: Sequence[Image], gap: int = 16) -> Image:
    """Pictures in one row on white, centred."""
    from PIL import Image as Pillow

    width = sum(image.width for image in images) + gap * (len(images) - 1)
    height = max(image.height for image in images)
    sheet = Pillow.new("RGB", (width, height), "white")
    left = 0
    for image in images:
        sheet.paste(image.convert("RGB"), (left, (height - image.height) // 2))
        left += image.width + gap
    return sheet


@cache
def font(size: int = 11) -> Any:
    """DejaVu Sans, which matplotlib brings and which covers most alphabets."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def titled(image: Image, title: str) -> Image:
    """A picture under a line of text; a line wider than the picture widens the page."""
    from PIL import Image as Pillow
    from PIL import ImageDraw

    width = max(image.width, math.ceil(font(12).getlength(title)) + 4)
    page = Pillow.new("RGB", (width, image.height + _LINE + 2), "white")
    ImageDraw.Draw(page).text((2, 1), title, fill=INK, font=font(12))
    page.paste(image.convert("RGB"), (0, _LINE + 2))
    return page


def denoising(noisy: Sequence[Image], estimates: Sequence[Image], sigmas: Sequence[float]) -> list[Image]:
    """Frames of two panels: what the network saw, and what it made of it; the last are the samples."""
    made = []
    for i, (left, right, sigma) in enumerate(zip(noisy, estimates, sigmas, strict=True)):
        last = i == len(noisy) - 1
        level = f"x at σ = {sigma:#.3g}" if sigma else "x at σ = 0"
        made.append(beside([titled(left, level), titled(right, "the samples" if last else "estimate of x₀")]))
    width, height = (max(size) for size in zip(*(frame.size for frame in made), strict=True))
    return [_on_page(frame, width, height) for frame in made]


def _on_page(image: Image, width: int, height: int) -> Image:
    from PIL import Image as Pillow

    page = Pillow.new("RGB", (width, height), "white")
    page.paste(image, (0, 0))
    return page


def matrix(
    cells: Sequence[Sequence[tuple[Image | None, str]]], rows: Sequence[str], columns: Sequence[str], title: str = ""
) -> Image:
    """Pictures in rows and columns with names, each over its caption (lines of text); a cell without a picture is its caption.

    Args:
        cells: of every row, a picture or None and the caption, a column each.
        rows: their names.
        columns: their names.
        title: a line above.
    """
    from PIL import Image as Pillow
    from PIL import ImageDraw

    gap, head, small = 10, font(12), font(10)
    lines = max(caption.count("\n") + 1 for row in cells for _, caption in row)
    known = [image for row in cells for image, _ in row if image is not None]
    words = [line for row in cells for _, caption in row for line in caption.split("\n")]
    wide = max([image.width for image in known] + [math.ceil(small.getlength(word)) for word in words])
    high = max([image.height for image in known], default=0)
    left = max(math.ceil(head.getlength(name)) for name in rows) + 2 * gap
    top = gap + _LINE * (1 + bool(title)) + 4
    step = high + 13 * lines + gap
    width = max(left + len(columns) * (wide + gap), math.ceil(head.getlength(title)) + 2 * gap)
    page = Pillow.new("RGB", (width, top + len(rows) * step), "white")
    pen = ImageDraw.Draw(page)
    pen.text((gap, gap // 2), title, fill=INK, font=head)
    for i, name in enumerate(columns):
        pen.text((left + i * (wide + gap), top - _LINE - 2), name, fill=INK, font=head)
    for row, (name, line) in enumerate(zip(rows, cells, strict=True)):
        y = top + row * step
        pen.text((gap, y + 2), name, fill=INK, font=head)
        for column, (image, caption) in enumerate(line):
            x = left + column * (wide + gap)
            if image is not None:
                page.paste(image.convert("RGB"), (x, y))
            for k, words_ in enumerate(caption.split("\n")):
                pen.text((x, y + (high if image is not None else 2) + 13 * k), words_, fill=FAINT, font=small)
    return page


def save_frames(path: str | Path, frames: Sequence[Image], fps: float, quality: int = 80) -> Path:
    """Write an animation that loops for ever and rests on its last frame; returns the path.

    `.webp` becomes `.gif` where Pillow was built without WebP.
    """
    from PIL import features

    assert frames, "an animation needs a frame"
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower(), "WEBP")
    if kind not in ("WEBP", "GIF"):
        raise GencliError(f"cannot draw an animation to {path.name}", "choose .webp or .gif")
    if kind == "WEBP" and not features.check("webp"):
        path, kind = path.with_suffix(".gif"), "GIF"
    each = max(20, round(1000 / fps))
    times = [each] * (len(frames) - 1) + [max(each, round(1000 * _REST))]
    ready = [frame.convert("RGB") for frame in frames]
    out = io.BytesIO()
    settings = {"quality": quality, "method": 4} if kind == "WEBP" else {"optimize": True}
    ready[0].save(out, kind, save_all=True, append_images=ready[1:], duration=times, loop=0, **settings)
    return atomic_write(path, out.getvalue())
