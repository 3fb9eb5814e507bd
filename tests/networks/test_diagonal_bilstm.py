"""Diagonal BiLSTM: skewing, and one layer against a plain loop over its equations."""

import pytest
import torch
from autoregressive_laws import lively

from gencli.core import Field
from gencli.models.autoregressive.pixelrnn import PixelRNN
from gencli.networks.diagonal_bilstm import skew, unskew

NET = {"name": "diagonal-bilstm", "width": 4, "layers": 2, "first": 3, "head": 8}


@pytest.mark.parametrize(("high", "wide"), [(3, 4), (5, 2), (1, 3), (4, 1)])
def test_skewing_moves_each_row_one_place_on_and_comes_back(high, wide):
    x = torch.randn(2, high, wide, 3)
    moved = skew(x)
    expected = torch.zeros(2, high, high + wide - 1, 3)
    for r in range(high):
        expected[:, r, r : r + wide] = x[:, r]
    assert torch.equal(moved, expected)
    assert torch.equal(unskew(moved, wide), x)


def walk(block, gates, direction):
    """States (N, 4, H, W) of one direction, pixel by pixel; the picture is mirrored for the one to the left."""
    n, _, high, wide = gates.shape
    weight = block.across[direction].weight
    h, c = torch.zeros(n, 4, high + 1, wide + 1).double(), torch.zeros(n, 4, high + 1, wide + 1).double()
    for r in range(high):
        for s in range(wide):
            beside, above = h[:, :, r + 1, s], h[:, :, r, s + 1]
            o, f, i, g = (gates[:, :, r, s] + torch.cat([beside, above], 1) @ weight.T).split(4, dim=1)
            c[:, :, r + 1, s + 1] = torch.sigmoid(f) * c[:, :, r + 1, s] + torch.sigmoid(i) * torch.tanh(g)
            h[:, :, r + 1, s + 1] = torch.sigmoid(o) * torch.tanh(c[:, :, r + 1, s + 1])
    return h[:, :, 1:, 1:]


@pytest.mark.parametrize("number", [0, 1])
def test_a_layer_follows_the_equations_pixel_by_pixel(number):
    block = lively(PixelRNN, Field("image", (1, 4, 5), vocab=4), NET).net.blocks[number]
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 4, 5, generator=g, dtype=torch.float64)
    read = torch.randn(2, 1, 4, 5, generator=g, dtype=torch.float64)
    right = walk(block, block.inward[0](x), 0)
    gates = block.inward[1](x)
    if number == 0:
        gates = gates + block.own(read)
    left = walk(block, gates.flip(3), 1).flip(3)
    expected = right.clone()
    expected[:, :, 1:] += left[:, :, :-1]  # one row lower
    torch.testing.assert_close(block.states(x, read), expected)
    assert (block.own is None) == (number == 1)
