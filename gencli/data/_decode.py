"""One image file to pixels at training size, by stated rules.

Turned as its EXIF rotation says; of an animation the first frame; 16 bits are divided by 257, floats in [0, 1] multiplied by
255; transparency is laid on the background; CMYK and other colour spaces by Pillow's plain formula, colour profiles are
not applied; then fitted with the bicubic filter (antialiased when it reduces) in one step.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "TGA", "AVIF", "JPEG2000", "ICO", "PCX")
MOST_PIXELS = 2**27  # above this a file is taken for a decompression bomb
LARGE = 2**24  # pixels; of such files one is decoded at a time, for each takes hundreds of MB
_one_at_a_time = threading.Lock()
_ORIENTATION = 0x0112
_ANIMATED = ("GIF", "WEBP", "PNG", "AVIF", "TIFF")

Fit = Literal["crop", "pad", "stretch"]
RGB = tuple[int, int, int]


@dataclass(frozen=True)
class Picture:
    """What was found in a file.

    Args:
        format: as Pillow calls it.
        mode: as stored, in Pillow's words (`RGB`, `L`, `P`, `CMYK`, `I;16`, …).
        width: after rotation.
        height: after rotation.
        grey: whether it has no colour: stored so, or a palette of greys.
        frames: more than one for an animation.
        rotated: whether EXIF turned it.
        alpha: whether any pixel is transparent.
        fitted: share of pixels lost (crop), share of the result that is padding (pad), change of aspect (stretch).
    """

    format: str
    mode: str
    width: int
    height: int
    grey: bool
    frames: int = 1
    rotated: bool = False
    alpha: bool = False
    fitted: float = 0.0


def formats() -> list[str]:
    """What is decoded, of all that Pillow would: one of its decoders (EPS) starts a program."""
    from PIL import Image

    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def decode(
    data: bytes, size: tuple[int, int], fit: Fit, background: RGB, cut: Callable[[Image], Image] | None = None
) -> tuple[Picture, np.ndarray]:
    """A picture and its pixels, uint8 `(3, height, width)`, grey ones with three equal planes.

    Args:
        data: the file.
        size: (height, width) of the result.
        fit: `crop` the centre, `pad` with the background, or `stretch`.
        background: colour under transparent pixels and around padded ones.
        cut: takes a part of the picture, which is then all of it.

    Raises:
        ValueError: the file is empty, a bomb, or holds numbers that no rule maps to 8 bits.
        OSError: the file is damaged; Pillow raises others too on hostile files, all of them `Exception`.
    """
    from PIL import Image

    if not data:
        raise ValueError("empty file")
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}×{image.height} pixels, the most is {MOST_PIXELS}: a decompression bomb?")
        with _one_at_a_time if image.width * image.height > LARGE else contextlib.nullcontext():
            return _decoded(image, size, fit, background, cut)


def _decoded(
    image: ImageFile, size: tuple[int, int], fit: Fit, background: RGB, cut: Callable[[Image], Image] | None
) -> tuple[Picture, np.ndarray]:
    """An image that was opened, at its size."""
    from PIL import ImageOps

    image_format, mode = str(image.format), image.mode
    frames = int(getattr(image, "n_frames", 1)) if image_format in _ANIMATED else 1
    image.load()
    rotated = image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    flat, alpha = _eight_bits(ImageOps.exif_transpose(image) if rotated else image, background)
    flat = flat if cut is None else cut(flat)
    fitted, share = fit_to(flat, size, fit, background)
    pixels = np.asarray(fitted.convert("RGB")).transpose(2, 0, 1)  # (3, H, W)
    stored_grey = mode[0] in "1LIF" and mode != "LAB"
    grey = stored_grey or (mode in ("P", "PA") and bool((pixels == pixels[:1]).all()))
    return Picture(image_format, mode, *flat.size, grey, frames, rotated, alpha, share), pixels


def _eight_bits(image: Image, background: RGB) -> tuple[Image, bool]:
    """Mode `L` or `RGB` without transparency, and whether there was any."""
    from PIL import Image

    if image.mode[0] in "IF":
        image = Image.fromarray(_scaled(np.asarray(image), image.mode))
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and "transparency" not in image.info:
        return image.convert("L" if image.mode in ("1", "L") else "RGB"), False
    grey = image.mode in ("1", "L", "LA", "La") and len(set(background)) == 1
    rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    alpha = rgba.getchannel("A").getextrema() != (255, 255)
    below = Image.new("RGBA", rgba.size, (*background, 255))
    below.alpha_composite(rgba)
    return below.convert("RGB").convert("L" if grey else "RGB"), alpha


def _scaled(values: np.ndarray, mode: str) -> np.ndarray:
    """Grey values of more than 8 bits to 8: the type's whole range, never stretched to what an image happens to hold."""
    least, most = values.min(), values.max()
    if mode == "F":
        if not (least >= 0 and most <= 1):
            raise ValueError(f"floating-point pixels from {least:g} to {most:g}, understood are 0 to 1")
        return np.round(values * 255.0).astype(np.uint8)
    if least < 0 or most > 65535:
        raise ValueError(f"pixels from {least} to {most}, understood are 0 to 65535")
    return np.round(values / 257.0).astype(np.uint8)


def fit_to(image: Image, size: tuple[int, int], fit: Fit, background: RGB) -> tuple[Image, float]:
    """The image at (height, width), and the share that `Picture.fitted` states."""
    from PIL import Image

    height, width = size
    bicubic = Image.Resampling.BICUBIC
    if fit == "stretch":
        aspect = (image.width * height) / (image.height * width)
        return image.resize((width, height), bicubic), max(aspect, 1 / aspect) - 1
    if fit == "crop":
        scale = min(image.width / width, image.height / height)  # source pixels per pixel of the result
        w, h = scale * width, scale * height
        left, top = (image.width - w) / 2, (image.height - h) / 2
        box = (left, top, min(left + w, image.width), min(top + h, image.height))
        return image.resize((width, height), bicubic, box=box), max(0.0, 1 - w * h / (image.width * image.height))
    scale = max(image.width / width, image.height / height)
    w, h = max(1, round(image.width / scale)), max(1, round(image.height / scale))
    flat = image.mode == "L" and len(set(background)) == 1
    around = Image.new("L" if flat else "RGB", (width, height), background[0] if flat else background)
    around.paste(image.resize((w, h), bicubic).convert(around.mode), ((width - w) // 2, (height - h) // 2))
    return around, 1 - w * h / (width * height)
