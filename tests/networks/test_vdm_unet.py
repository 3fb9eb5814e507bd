"""VDM's U-Net: official sizes and outputs, Fourier features, x added to the output."""

import math

import pytest
import torch

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.vdm_unet import VdmUNet, fourier_features

LABEL = Field("label", (), vocab=5)
TINY = {"width": 8, "layers": 2}


def image(side, channels=1):
    return Field("image", (channels, side, side), vocab=256, range=(-1.0, 1.0))


def hashed(shape, k):
    """Unit variance, from a formula: the same on every machine."""
    n = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
    return (((n * 12.9898 + k * 78.233).sin() * 43758.5453).remainder(1.0) - 0.5).mul(12**0.5).reshape(shape).float()


def patterned(net):
    with torch.no_grad():
        for k, weight in enumerate(net.parameters()):
            scale = 1.0 if weight.ndim <= 1 else weight[0].numel() ** -0.5
            weight.copy_(hashed(weight.shape, k + 1) * scale)
    return net.eval()


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 30_578_179),
        ({"width": 256}, 122_137_603),
        ({"width": 256, "layers": 64}, 237_603_843),
        ({"width": 256, "attention": True}, 139_276_803),
    ],
    ids=["CIFAR-10", "ImageNet-32", "ImageNet-64", "augmented CIFAR-10"],
)
def test_parameter_counts_are_the_official_ones(settings, count):
    with torch.device("meta"):
        net = VdmUNet.make(settings, image(32, 3), 3, {})
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize(
    ("attention", "std", "official"),
    [
        (False, 0.3927, [-0.0726, 0.4429, -0.3199, 0.3278, 0.3664, -0.2983, 0.5909, 0.2676, 0.0827, 0.6213]),
        (True, 0.3421, [-0.0530, -0.0961, 0.0163, 0.0472, 0.0231, 0.1995, 0.0664, 0.1747, 0.2514, 0.0107]),
    ],
)
def test_outputs_equal_the_official_code(attention, std, official):
    """Numbers from the authors' code with these weights copied into it, less x, each map less its mean."""
    net = patterned(VdmUNet.make({"width": 128, "layers": 1, "attention": attention}, image(8, 3), 3, {}))
    x = hashed((2, 3, 8, 8), 0)
    with torch.no_grad():
        made = net(x, torch.tensor([200.0, 750.0])) - x
    made = made - made.mean((2, 3), keepdim=True)
    assert (made.flatten()[5::41] - torch.tensor(official)).abs().max() < 2e-4
    assert abs(float(made.std(correction=0)) - std) < 1e-4


def test_fourier_features_show_the_last_bits_of_eight():
    """Neighbouring grey values, 2/255 apart, are far apart in the features of n = 6 and 7."""
    x = torch.linspace(-1, 1, 256).reshape(1, 2, 8, 16)
    made = fourier_features(x, (6, 7))
    assert made.shape == (1, 2 * 5, 8, 16)
    expected = torch.stack([(2 * math.pi * 2**n * x[0, c]).sin() for c in (0, 1) for n in (6, 7)])
    assert (made[0, 2:6] - expected).abs().max() < 1e-3
    grey = fourier_features(torch.linspace(-1, 1, 256).reshape(256, 1, 1, 1), (6, 7)).flatten(1)
    apart = (grey[1:, 1:] - grey[:-1, 1:]).norm(dim=1)
    assert apart.min() > 1 and (grey[1:, 0] - grey[:-1, 0]).max() < 0.01
    assert fourier_features(x, ()) is x


def test_the_output_starts_as_x_and_what_comes_with_it_at_zero():
    torch.manual_seed(0)
    net = VdmUNet.make(TINY, image(8, 2), 3, {"label": LABEL})
    x = torch.randn(2, 2, 8, 8)
    out = net(x, torch.tensor([0.1, 0.9]), label=torch.tensor([0, 5]))
    assert torch.equal(out[:, :2], x) and not out[:, 2].any()
    out.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters()) and net.conv_out.weight.grad.abs().sum() > 0


def test_every_parameter_moves_the_output():
    net = patterned(VdmUNet.make({**TINY, "attention": True}, image(8), 1, {"label": LABEL}))
    inputs = torch.randn(6, 1, 8, 8), torch.linspace(0, 1, 6)
    net(*inputs, label=torch.arange(6)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_every_skip_reaches_the_output_at_any_size():
    net = patterned(VdmUNet.make(TINY, image(8), 1, {}))
    x, level = torch.randn(1, 1, 5, 7), torch.tensor([300.0])
    nothing = [torch.zeros(1, 8, 5, 7) for _ in range(4)]
    plain = net(x, level)
    assert torch.equal(net(x, level, residuals=nothing), plain)
    for i in range(4):
        bumped = [*nothing[:i], torch.randn(1, 8, 5, 7), *nothing[i + 1 :]]
        assert (net(x, level, residuals=bumped) - plain).abs().max() > 1e-3


def test_an_item_does_not_depend_on_its_batch_mates():
    net = patterned(VdmUNet.make(TINY, image(8), 1, {"label": LABEL}))
    x, level, label = torch.randn(6, 1, 8, 8), torch.arange(6) * 200.0, torch.arange(6)
    whole = net(x, level, label=label)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], label=label[i : i + 1]) for i in range(6)])
    assert (whole - alone).abs().max() < 1e-5


def test_points_and_unknown_conditions_are_refused_by_name():
    with pytest.raises(GencliError, match="points"):
        VdmUNet.make(TINY, Field("points", (2,)), 2, {})
    with pytest.raises(GencliError, match="'text'"):
        VdmUNet.make(TINY, image(8), 1, {"text": Field("tokens", (16,), vocab=100)})


@pytest.mark.parametrize("levels", [17, 256])
def test_the_distance_of_two_grey_levels_is_a_wave_of_the_fastest_feature(levels):
    grid = ((torch.arange(levels, dtype=torch.float64) + 0.5) * 2 / levels - 1).reshape(1, 1, 1, -1)
    made = fourier_features(grid, (6, 7), levels)[0, :, 0]
    sine, cosine = made[2], made[4]
    assert (sine - sine[0]).abs().max() < 1e-9 and (cosine - cosine[0]).abs().max() < 1e-9
    assert (made[1] - made[1][0]).abs().max() > 0.5 or (made[3] - made[3][0]).abs().max() > 0.5
