"""2×2 squares as channels, and back."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from gencli.nn.squeeze import Corners, squeeze, unsqueeze


@pytest.mark.parametrize("corners", get_args(Corners))
def test_it_moves_every_number_once_and_back(corners: Corners) -> None:
    x = torch.arange(2 * 3 * 6 * 4).view(2, 3, 6, 4)
    made = squeeze(x, corners)
    assert made.shape == (2, 12, 3, 2) and torch.equal(made.flatten(1).sort(1).values, x.flatten(1))
    assert torch.equal(unsqueeze(made, corners), x)


def test_halves_of_the_channels_are_rows_or_colours() -> None:
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    row, colour = (rows % 2)[None, None], ((rows + columns) % 2)[None, None]
    for corners, kind in (("rows", row), ("colours", colour)):
        first, second = squeeze(kind, corners).chunk(2, dim=1)  # type: ignore[arg-type]
        assert (first == 0).all() and (second == 1).all(), corners
