"""The U-Net of 2015."""

from __future__ import annotations

import pytest
import torch

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.original_unet import OriginalUNet, output_side

PAPER = Field("image", (1, 572, 572)), Field("map", (2, 388, 388))


def test_the_paper_s_network_maps_572_to_388() -> None:
    with torch.device("meta"):
        net = OriginalUNet.make({}, *PAPER)
        assert net(torch.empty(1, 1, 572, 572)).shape == (1, 2, 388, 388)
    convolutions = sum(p.numel() for p in net.parameters())
    by_hand = 0
    widths = [64, 128, 256, 512, 1024]
    for inputs, outputs in zip([1, *widths[:-1]], widths, strict=True):
        by_hand += 9 * inputs * outputs + outputs + 9 * outputs**2 + outputs
    for width in widths[:-1]:
        by_hand += 4 * 2 * width * width + width  # 2×2 up-convolution
        by_hand += 9 * 2 * width * width + width + 9 * width**2 + width
    assert convolutions == by_hand + 64 * 2 + 2 == 31_030_658


def test_every_skip_reaches_the_output() -> None:
    torch.manual_seed(0)
    net = OriginalUNet.make({"width": 4, "levels": 3}, Field("image", (1, 60, 60)), Field("map", (1, 20, 20)))
    x = torch.randn(1, 1, 60, 60)
    whole = net(x)
    assert whole.shape == (1, 1, 20, 20)
    for level, rise in enumerate(net.up):
        with torch.no_grad():
            kept = rise[0].weight.clone()
            rise[0].weight[:, : kept.shape[1] // 2] = 0  # the half that reads the skip
            assert not torch.allclose(net(x), whole), f"the skip of level {level} does nothing"
            rise[0].weight.copy_(kept)


def test_a_pixel_of_the_output_sees_what_valid_convolutions_see() -> None:
    net = OriginalUNet.make({"width": 2, "levels": 2}, Field("image", (1, 24, 24)), Field("map", (1, 8, 8)))
    for p in net.parameters():
        p.data = p.data.abs() + 0.01  # nothing cancels, no unit is dead
    x = torch.ones(1, 1, 24, 24, requires_grad=True)
    net(x)[0, 0, 0, 0].backward()
    seen = x.grad[0, 0] != 0  # by hand 18 pixels; of equal values pooling takes the first, so 17 show
    assert seen[:17, :17].all() and not seen[18:].any() and not seen[:, 18:].any()


def test_sides_that_do_not_work_are_refused() -> None:
    assert output_side(572, 5) == 388
    with pytest.raises(GencliError, match="570"):
        output_side(570, 5)
    with pytest.raises(GencliError, match="too small"):
        output_side(16, 3)
