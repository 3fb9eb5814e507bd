"""The residual network of small images: official sizes, shortcuts without parameters, and refusals."""

import pytest
import torch

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.resnet import Resnet

CIFAR = Field("image", (3, 32, 32))


@pytest.mark.parametrize(("blocks", "count"), [(3, 269_722), (18, 1_727_962)])
def test_parameter_counts_are_the_official_ones(blocks, count):
    with torch.device("meta"):
        net = Resnet.make({"blocks": blocks}, CIFAR, 10)
    assert sum(p.numel() for p in net.parameters()) == count


def test_without_its_convolutions_a_stage_is_every_second_pixel_and_empty_channels():
    torch.manual_seed(0)
    net = Resnet.make({"width": 4, "blocks": 2}, CIFAR, 10).eval()
    with torch.no_grad():
        for block in net.body:
            block.second[1].weight.zero_()
            block.second[1].bias.zero_()
        x = torch.randn(2, 3, 32, 32)
        h = torch.relu(net.stem(x))
        features = net.features(x)
    assert torch.allclose(features[:, :4], h[:, :, ::4, ::4].mean((2, 3)), atol=1e-6) and h.abs().mean() > 0.1
    assert features.shape == (2, 16) and not features[:, 4:].any()


def test_the_logits_are_a_linear_function_of_the_features():
    torch.manual_seed(0)
    net = Resnet.make({"width": 4, "blocks": 1}, CIFAR, 7).eval()
    x = torch.randn(3, 3, 32, 32)
    assert torch.allclose(net.head(net.features(x)), net(x)) and net(x).std() > 0


def test_what_is_no_image_or_too_small_is_refused():
    with pytest.raises(GencliError, match=r"at least 4 pixels a side, got image \(1, 3, 8\)"):
        Resnet.make({}, Field("image", (1, 3, 8)), 10)
    with pytest.raises(GencliError, match=r"got points \(2,\)"):
        Resnet.make({}, Field("points", (2,)), 8)
