"""Row LSTM: one layer against a plain loop over its equations."""

import torch
from autoregressive_laws import lively

from gencli.core import Field
from gencli.models.autoregressive.pixelrnn import PixelRNN

NET = {"name": "row-lstm", "width": 4, "layers": 1, "first": 3, "kernel": 3, "head": 8}


def test_a_layer_follows_the_equations_pixel_by_pixel():
    block = lively(PixelRNN, Field("image", (1, 5, 6), vocab=4), NET).net.blocks[0]
    x = torch.randn(2, 8, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inward, across = block.inward.conv.weight[:, :, 0], block.across.weight  # (16, 8, 2) taps −1, 0; (16, 4, 3)
    h, c = (
        torch.zeros(2, 4, 6, 8).double(),
        torch.zeros(2, 4, 6, 8).double(),
    )  # states, a row and a column of zeros around
    for r in range(5):
        for s in range(6):
            gates = block.inward.conv.bias + x[:, :, r, s] @ inward[:, :, 1].T
            gates = gates + (x[:, :, r, s - 1] @ inward[:, :, 0].T if s else 0)
            for tap in range(3):
                gates = gates + h[:, :, r, s + tap] @ across[:, :, tap].T
            o, f, i, g = gates.split(4, dim=1)
            c[:, :, r + 1, s + 1] = torch.sigmoid(f) * c[:, :, r, s + 1] + torch.sigmoid(i) * torch.tanh(g)
            h[:, :, r + 1, s + 1] = torch.sigmoid(o) * torch.tanh(c[:, :, r + 1, s + 1])
    torch.testing.assert_close(block.states(x, x), h[:, :, 1:, 1:-1])
