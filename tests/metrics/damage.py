"""Four ways to spoil images, in four levels each, mildest first."""

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

NOISE = (4, 8, 16, 32)  # standard deviation in grey levels
BLUR = (0.5, 0.7, 1.0, 1.5)  # standard deviation in pixels
JPEG = (85, 60, 35, 12)  # quality
DROPPED = (1, 2, 4, 6)  # classes of ten


def noise(x, level, seed=0):
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    return (x.float() + level * drawn).clamp(0, 255).round().to(torch.uint8)


def blur(x, level):
    steps = torch.arange(-6, 7).float()
    line = torch.exp(-(steps**2) / (2 * level**2))
    line = line / line.sum()
    wide = F.pad(x.float(), (6, 6, 6, 6), mode="replicate")
    return F.conv2d(F.conv2d(wide, line[None, None, :, None]), line[None, None, None]).round().to(torch.uint8)


def jpeg(x, level):
    made = []
    for image in x[:, 0].numpy():
        file = io.BytesIO()
        Image.fromarray(image).save(file, "JPEG", quality=level)
        made.append(np.asarray(Image.open(file)))
    return torch.from_numpy(np.stack(made))[:, None]


def without_classes(x, labels, level):
    return x[labels >= level]
