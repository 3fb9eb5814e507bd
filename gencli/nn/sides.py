"""Images whose sides a network can halve as often as it must."""

from __future__ import annotations

from gencli.errors import GencliError


def check_sides(height: int, width: int, stride: int, other: str = "") -> None:
    """Refuse an image whose sides `stride` does not divide, naming the nearest sides that it does.

    Args:
        other: another way out, for the hint.
    """
    for side in (height, width):
        if side % stride:
            below, above = side // stride * stride, -(-side // stride) * stride
            fitting = " or ".join(str(s) for s in (below, above) if s)
            raise GencliError(
                f"image size {height}×{width} is not divisible by the network's stride {stride}",
                f"use --image-size {fitting}{', or ' + other if other else ''}",
            )
