"""Images on a page: grids, single files, animations, captioned sheets, and half-block characters for a terminal."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gencli.files import atomic_write
from gencli.report.kinds._pictures import INK, denoising, font, save_frames, save_picture

if TYPE_CHECKING:
    from PIL.Image import Image

RGB = tuple[int, int, int]

MOVING = 64  # images that an animation shows
_SIDE = 32  # pixels that every image gets at least
_GAP = 2
_PAPER: RGB = (255, 255, 255)


def grid(images: Any, columns: int | None = None, scale: int | None = None) -> Image:
    """Images `(N, C, H, W)` uint8 in rows, as near to a square as may be, pixels repeated `scale` times.

    Args:
        images: array or tensor; C is 1, 3 or 4.
        columns: number of images in a row.
        scale: whole factor; by default the least that makes every image 32 pixels wide and high.
    """
    return _sheet(images, None, columns, scale)


def panel(images: Any, like: Any) -> Image:
    """The first sixteen images, to be seen among other panels; `like` (real images) changes nothing."""
    return grid(images[:16], columns=4)


def contact_sheet(images: Any, captions: Sequence[str], columns: int | None = None, scale: int | None = None) -> Image:
    """A grid with a line of text under every image (its class, its name), shortened to fit."""
    assert len(captions) == len(images), f"{len(captions)} captions for {len(images)} images"
    return _sheet(images, captions, columns, scale)


def save_grid(path: str | Path, images: Any, columns: int | None = None, scale: int | None = None) -> Path:
    """Write a grid; the suffix chooses the format, all of them without loss but JPEG."""
    return save_picture(path, grid(images, columns, scale))


def save_items(folder: str | Path, images: Any, names: Sequence[str]) -> list[Path]:
    """Write every image at its own size as `folder/NAME.png`."""
    array = _array(images)
    assert len(array) == len(names), f"{len(names)} names for {len(array)} images"
    return [save_picture(Path(folder) / f"{name}.png", _pil(image)) for image, name in zip(array, names, strict=True)]


def save_array(path: str | Path, images: Any, labels: Any = None) -> Path:
    """Write all images as `arr_0`, uint8 `(N, H, W, C)`, and their classes as `arr_1`: what ADM's evaluator reads."""
    out = io.BytesIO()
    parts = [_array(images).transpose(0, 2, 3, 1), *([] if labels is None else [np.asarray(labels)])]
    np.savez(out, *parts)
    return atomic_write(Path(path), out.getvalue())


def save_animation(
    path: str | Path, frames: Sequence[Any], fps: float = 12, columns: int | None = None, scale: int | None = None
) -> Path:
    """Write grids of `frames`, each `(N, C, H, W)`, as an animated WebP or GIF; returns the path written."""
    return save_frames(path, [grid(frame, columns, scale) for frame in frames], fps)


def save_denoising(
    path: str | Path,
    noisy: Sequence[Any],
    estimates: Sequence[Any],
    sigmas: Sequence[float],
    fps: float = 12,
    columns: int | None = None,
    scale: int | None = None,
) -> Path:
    """Write an animation of the noisy images at the levels `sigmas`, left, and of what was made of them, right."""
    left, right = ([grid(frame, columns, scale) for frame in frames] for frames in (noisy, estimates))
    return save_frames(path, denoising(left, right, sigmas), fps)


def half_blocks(image: Image | Any, width: int | None = None) -> list[list[tuple[RGB, RGB | None]]]:
    """An image as rows of character cells: the colours of the upper and of the lower half of `▀`.

    Args:
        image: a Pillow image, or one image `(C, H, W)` uint8.
        width: the most cells in a row; a larger image is reduced, a smaller one is left as it is.

    Returns:
        Rows of (upper, lower); lower is None in the last row of an image of odd height.
    """
    from PIL import Image as Pillow

    picture = image if isinstance(image, Pillow.Image) else _pil(_array(image[None])[0])
    picture = picture.convert("RGB")
    if width is not None and picture.width > width:
        height = max(1, round(picture.height * width / picture.width))
        picture = picture.resize((width, height), Pillow.Resampling.BOX)
    pixels = [[(int(r), int(g), int(b)) for r, g, b in row] for row in np.asarray(picture)]
    rows: list[list[tuple[RGB, RGB | None]]] = []
    for top in range(0, len(pixels), 2):
        below: Sequence[RGB | None] = pixels[top + 1] if top + 1 < len(pixels) else [None] * len(pixels[top])
        rows.append(list(zip(pixels[top], below, strict=True)))
    return rows


def _sheet(images: Any, captions: Sequence[str] | None, columns: int | None, scale: int | None) -> Image:
    from PIL import Image as Pillow
    from PIL import ImageDraw

    array = _array(images)
    n, _, height, width = array.shape
    scale = scale or max(1, math.ceil(_SIDE / min(height, width)))
    columns = min(n, columns or math.ceil(math.sqrt(n)))
    high, wide = height * scale, width * scale
    text = 14 if captions else 0
    rows = math.ceil(n / columns)
    size = (columns * (wide + _GAP) + _GAP, rows * (high + text + _GAP) + _GAP)
    page = Pillow.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(page)
    for i, image in enumerate(array):
        left, top = _GAP + i % columns * (wide + _GAP), _GAP + i // columns * (high + text + _GAP)
        page.paste(_pil(image).resize((wide, high), Pillow.Resampling.NEAREST).convert("RGB"), (left, top))
        if captions:
            pen.text((left, top + high), _shortened(captions[i], wide, pen), fill=INK, font=font())
    return page


def _shortened(text: str, width: int, pen: Any) -> str:
    if pen.textlength(text, font=font()) <= width:
        return text
    while text and pen.textlength(f"{text}…", font=font()) > width:
        text = text[:-1]
    return f"{text}…"


def _array(images: Any) -> np.ndarray:
    """uint8 `(N, C, H, W)` from an array or a tensor."""
    array = images.detach().cpu().numpy() if hasattr(images, "detach") else np.asarray(images)
    assert array.ndim == 4 and array.shape[1] in (1, 3, 4), f"images are (N, 1|3|4, H, W), these are {array.shape}"
    assert array.dtype == np.uint8, f"images are uint8, these are {array.dtype}: decode them first"
    assert array.size, "there is no image to draw"
    return array


def _pil(image: np.ndarray) -> Image:
    from PIL import Image as Pillow

    return Pillow.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
