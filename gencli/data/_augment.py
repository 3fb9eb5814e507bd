"""Augmentation of uint8 images before encoding: small shifts and mirror images, one draw per item."""

from __future__ import annotations

import torch

from gencli.core import Batch, Rng
from gencli.errors import GencliError


def augment(batch: Batch, shift: int, flip: bool, rng: Rng) -> Batch:
    """Shift each image by up to `shift` pixels each way and, with `flip`, mirror every second one on average.

    The border is repeated outwards, so a digit keeps its background. Row i's numbers depend on `rng` and i alone.

    Args:
        batch: `x` is `(N, C, H, W)`; an `image` of its sides moves with it, one of other sides is mirrored with it, other
            keys pass through.
        shift: greatest shift in pixels; 0 for none.
        flip: mirror left to right with probability one half.
        rng: of the rows of this batch.

    Raises:
        GencliError: the data are not images, or a shift would part x from an image of other sides.
    """
    if not shift and not flip:
        return batch
    x = batch["x"]
    if x.ndim != 4:
        raise GencliError(
            f"shift and flip are for images, an item here has shape {tuple(x.shape[1:])}", "set shift 0 and flip off"
        )
    n, _, height, width = x.shape
    u = rng.at("augment").uniform((n, 3)).to(x.device)
    moved = (u[:, :2] * (2 * shift + 1)).floor().long() - shift  # (N, 2), each in [-shift, shift]
    rows = (torch.arange(height, device=x.device) - moved[:, :1]).clamp(0, height - 1)  # (N, H)
    columns = (torch.arange(width, device=x.device) - moved[:, 1:]).clamp(0, width - 1)  # (N, W)
    if flip:
        columns = torch.where(u[:, 2:] < 0.5, columns, columns.flip(1))
    item = torch.arange(n, device=x.device)[:, None, None, None]
    made, whole = {}, ["x"]
    if "image" in batch and batch["image"].shape[2:] != x.shape[2:]:
        if shift:
            raise GencliError(
                f"shift {shift} would move images of {width}×{height} pixels away from the smaller ones that go with them",
                "set shift 0",
            )
        made["image"] = torch.where(u[:, 2, None, None, None] < 0.5, batch["image"], batch["image"].flip(-1))
    elif "image" in batch:
        whole.append("image")
    for key in whole:
        channel = torch.arange(batch[key].shape[1], device=x.device)[None, :, None, None]
        made[key] = batch[key][item, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return {**batch, **made}
