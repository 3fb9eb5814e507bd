"""Saving of Pillow images, still and moving, in one step."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gencli.errors import GencliError
from gencli.files import atomic_write

if TYPE_CHECKING:
    from PIL.Image import Image

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
