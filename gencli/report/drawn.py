"""The pictures beside samples: the grid, the way there, and how unsure and in which order a model of tokens was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gencli.report.album import evenly
from gencli.report.kinds import writer
from gencli.report.kinds._pictures import matrix, save_picture, titled
from gencli.report.kinds.image import MOVING, grid, save_animation

if TYPE_CHECKING:
    from PIL.Image import Image

    from gencli.evaluation.generate import Progress

GIVEN = (150, 150, 150)


def moving(kind: str, folder: Path, done: Sequence[Progress]) -> None:
    """All animations that finished micro-batches with frames have material for.

    `trajectory`: the samples on the way, beside them the noisy x where there is one. `entropy`: how unsure the model was at
    each position, brightest where least sure. `confidence`: the probability with which each was fixed. `order`: a still
    picture of the step that fixed each.
    """
    of_kind = writer(kind)
    frames = _together(done, lambda chunk, i: chunk.frames[i], of_kind.MOVING)
    known = done[0].info[0]
    if "noisy" in known:
        noisy = _together(done, lambda chunk, i: chunk.info[i]["noisy"], of_kind.MOVING)
        sigmas = [float(info["sigma"].max()) for info in done[0].info]
        of_kind.save_denoising(folder / "trajectory.webp", noisy, frames, sigmas)
    else:
        of_kind.save_animation(folder / "trajectory.webp", frames)
    if "entropy" in known:
        save_animation(folder / "entropy.webp", shades(_maps(done, "entropy")))
    if "confidence" in known:
        save_animation(folder / "confidence.webp", shades(_maps(done, "confidence"), top=1.0))
    if "order" in known:
        save_order(folder / "order.png", _maps(done, "order")[-1])


def _together(done: Sequence[Progress], pick: Callable[[Progress, int], Tensor], most: int) -> list[Tensor]:
    """The frames of all micro-batches side by side."""
    return [torch.cat([pick(chunk, i) for chunk in done])[:most] for i in range(len(done[0].frames))]


def _maps(done: Sequence[Progress], key: str) -> list[Tensor]:
    """A number for each position of every image, `(N, h, w)` float, the mean over channels, frame by frame."""
    made = _together(done, lambda chunk, i: chunk.info[i][key], MOVING)
    return [m.double().reshape(len(m), -1, *_sides(m)).mean(1) for m in made]


def _sides(values: Tensor) -> tuple[int, int]:
    """Height and width; a sequence is one row."""
    return (values.shape[-2], values.shape[-1]) if values.ndim > 2 else (1, values.shape[-1])


def shades(maps: Sequence[Tensor], top: float | None = None) -> list[Tensor]:
    """Maps `(N, h, w)` as grey images `(N, 1, h, w)`, white = `top`, by default the greatest value of all."""
    most = top or max(float(m.max()) for m in maps) or 1.0
    return [(m / most * 255).round().clamp(0, 255).to(torch.uint8)[:, None] for m in maps]


def colours(values: Tensor, most: float) -> Tensor:
    """Numbers in [0, most] as colours `(3, …)`, from dark blue to yellow, which are told apart without red and green."""
    from matplotlib import colormaps

    rgb = colormaps["viridis"](np.asarray(values.double() / max(most, 1e-12)))[..., :3]
    return torch.from_numpy((rgb * 255).round().astype(np.uint8)).movedim(-1, 0)


def save_order(path: Path, order: Tensor) -> Path:
    """The step `(N, h, w)` that fixed each position, the first ones dark, the last ones bright, given ones (0) grey."""
    steps = int(order.max())
    shown = colours((order - 1).clamp(min=0), max(1, steps - 1)).movedim(0, 1)  # (N, 3, h, w)
    given = torch.tensor(GIVEN, dtype=torch.uint8)[:, None, None]
    picture = grid(torch.where(order[:, None] == 0, given, shown))
    words = f"fixed in step 1 (dark) to {steps} (bright)" + (", given (grey)" if (order == 0).any() else "")
    return save_picture(path, titled(picture, words))


def save_attention(path: Path, weights: Tensor, blocks_at_most: int = 8, heads_at_most: int = 8) -> Path:
    """How much each token takes from each `(depth, heads, L, L)`: a picture for each block and head, an even choice of many.

    Row i of a picture is what token i takes, the columns are the tokens from which, in the model's order. Colours are by the
    square root of the share, each picture up to its own greatest, which stands below it.
    """
    blocks, heads = (evenly(n, most) for n, most in zip(weights.shape, (blocks_at_most, heads_at_most), strict=False))
    cells = [[(_square(weights[i, k]), f"up to {float(weights[i, k].max()):.2f}") for k in heads] for i in blocks]
    rows, columns = [f"block {i + 1}" for i in blocks], [f"head {k + 1}" for k in heads]
    title = (
        f"what each of {weights.shape[-2]} tokens (rows) takes from the class or start and those before it (columns)"
    )
    return save_picture(path, matrix(cells, rows, columns, title))


def _square(weights: Tensor, least: int = 96, most: int = 192) -> Image:
    """One map of attention as a picture of a readable size."""
    from PIL import Image as Pillow

    rgb = colours(weights.double().sqrt(), float(weights.double().sqrt().max())).movedim(0, -1)
    picture = Pillow.fromarray(np.ascontiguousarray(rgb.numpy()))
    if picture.width > most:
        return picture.resize((most, most), Pillow.Resampling.BOX)
    factor = max(1, -(-least // picture.width))
    return picture.resize((picture.width * factor, picture.height * factor), Pillow.Resampling.NEAREST)
