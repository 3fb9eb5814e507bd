"""Resizing of whole uint8 arrays with Pillow's bicubic filter, which is antialiased when it reduces."""

from __future__ import annotations

import numpy as np


def resize(images: np.ndarray, size: int) -> np.ndarray:
    """uint8 `(N, C, H, W)` to `(N, C, size, size)`; C is 1 or 3."""
    from PIL import Image

    channels = images.shape[1]
    if images.shape[2:] == (size, size):
        return images
    made = np.empty((len(images), channels, size, size), np.uint8)
    for row, image in enumerate(images):
        plane = image[0] if channels == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))  # (H, W) or (H, W, 3)
        large = np.asarray(Image.fromarray(plane).resize((size, size), Image.Resampling.BICUBIC))
        made[row] = large[None] if channels == 1 else large.transpose(2, 0, 1)
    return made
