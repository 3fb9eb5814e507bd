"""Convolutions whose filters have a length of their own."""

from __future__ import annotations

import torch
from torch import nn

from gencli.nn.weight_norm import WeightNormConv2d


def test_it_is_torchs_weight_norm() -> None:
    mine = WeightNormConv2d(3, 5, 3)
    theirs = nn.Conv2d(3, 5, 3, padding=1)
    with torch.no_grad():
        assert mine.magnitude is not None and mine.bias is not None
        mine.magnitude.uniform_(0.5, 2, generator=torch.Generator().manual_seed(0))
        theirs.weight.copy_(mine.direction)
        theirs.bias.copy_(mine.bias.normal_(generator=torch.Generator().manual_seed(1)))  # type: ignore[union-attr]
    nn.utils.parametrizations.weight_norm(theirs, dim=0)
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(mine.magnitude.view(-1, 1, 1, 1))  # type: ignore[union-attr]
    x = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(mine(x), theirs(x))


def test_filters_without_a_magnitude_have_length_one_whatever_their_direction() -> None:
    conv = WeightNormConv2d(1, 2, 3, magnitude=False, bias=False)
    dot = torch.zeros(1, 1, 3, 3)
    dot[..., 1, 1] = 1
    first = conv(dot)
    torch.testing.assert_close(first.flatten(1).square().sum(1), torch.tensor([2.0]))
    with torch.no_grad():
        conv.direction.mul_(7)
    torch.testing.assert_close(conv(dot), first)
