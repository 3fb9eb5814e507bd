"""Resizing of whole uint8 arrays with Pillow's bicubic filter, which is antialiased when it reduces."""

from __future__ import annotations

import numpy as np


def resize(images: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """uint8 `(N, C, H, W)` to `(N, C, *size)`, one number being both sides; C is 1 or 3."""
    from PIL import Image

    channels = images.shape[1]
    height, width = (size, size) if isinstance(size, int) else size
    if images.shape[2:] == (height, width):
        return images
    made = np.empty((len(images), channels, height, width), np.uint8)
    for row, image in enumerate(images):
        plane = image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))  # (H, W) or (H, W, 3)
        large = np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC))
        made[row] = large[None] if channels == 1 else large.transpose(2, 0, 1)
    return made
