"""RefineNet: official sizes and outputs, InstanceNorm++, rows for levels and classes."""

import pytest
import torch
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.refinenet import RefineNet, _Told

LABEL = Field("label", (), vocab=5)
TINY = {"width": 4, "levels": 3}


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
    ("settings", "shape", "count"),
    [
        ({}, (3, 32, 32), 30_117_635),
        ({"width": 64}, (1, 28, 28), 7_638_657),
        ({"conditional": False}, (3, 32, 32), 29_694_083),
        ({"conditional": False, "depth": 5}, (3, 128, 128), 83_445_379),
        ({"conditional": False, "depth": 6}, (3, 256, 256), 94_132_611),
    ],
    ids=["NCSN CIFAR-10", "NCSN MNIST", "NCSNv2", "deeper", "deepest"],
)
def test_parameter_counts_are_the_official_ones(settings, shape, count):
    with torch.device("meta"):
        net = RefineNet.make(settings, Field("image", shape), shape[0], {})
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize(
    ("settings", "std", "official"),
    [
        ({"levels": 10}, 0.2376, [-0.1598, -0.0764, -0.0961, -0.1334, 0.0273, 0.0795, 0.2865, 0.0403]),
        ({"conditional": False}, 0.1357, [-0.0729, -0.0664, 0.0921, 0.1196, -0.1727, 0.1554, -0.1324, -0.1498]),
        (
            {"conditional": False, "depth": 5},
            0.1613,
            [-0.0692, -0.0696, -0.0625, 0.3506, 0.0108, 0.0590, 0.0130, 0.3406],
        ),
        (
            {"conditional": False, "depth": 6},
            0.1561,
            [-0.0990, 0.1477, 0.0536, -0.0046, 0.0267, -0.0347, -0.1565, -0.0691],
        ),
    ],
    ids=["NCSN", "NCSNv2", "deeper", "deepest"],
)
def test_outputs_equal_the_official_code(settings, std, official):
    """Numbers from the authors' code with these weights copied into it: levels 0 and 3, each map less its mean."""
    net = patterned(RefineNet.make({"width": 8, **settings}, image(16, 3), 3, {}))
    with torch.no_grad():
        made = net(hashed((2, 3, 16, 16), 0), torch.tensor([0.0, 3.0]))
    made = made - made.mean((2, 3), keepdim=True)
    assert (made.flatten()[5::197] - torch.tensor(official)).abs().max() < 1e-4
    assert abs(float(made.std()) - std) < 1e-4


def test_instance_norm_gives_back_the_means_that_it_takes():
    norm = patterned(RefineNet.make({**TINY, "levels": 2}, image(8), 1, {"label": LABEL})).norm_out
    x, told = torch.randn(3, 4, 5, 7) + 3, _Told(torch.tensor([1, 0, 1]), torch.tensor([5, 2, 0]))
    gamma, alpha, beta = norm.table.weight[told.row].reshape(3, 3, 4, 1, 1).unbind(1)
    means = x.mean((2, 3), keepdim=True)
    means = (means - means.mean(1, keepdim=True)) / (means.var(1, keepdim=True) + 1e-5).sqrt()
    expected = gamma * (F.instance_norm(x) + alpha * means) + beta + norm.label.weight[told.label][:, :, None, None]
    assert (norm(x, told) - expected).abs().max() < 1e-5


def test_a_level_is_told_by_its_rows_and_only_by_them():
    net = patterned(RefineNet.make(TINY, image(8), 1, {}))
    x, level = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 0.9999, 2.0])  # an index that lost digits on the way
    plain = net(x, level)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith("table.weight"):
                weight[1] += 0.3 * hashed(weight[1].shape, 99)
    moved = (net(x, level) - plain).abs().amax((1, 2, 3))
    assert moved[0] == 0 and moved[1] > 1e-3 and moved[2] == 0
    untold = patterned(RefineNet.make({**TINY, "conditional": False}, image(8), 1, {}))
    assert torch.equal(untold(x, level), untold(x, level + 500))


@pytest.mark.parametrize("conditional", [True, False])
def test_every_parameter_moves_the_output(conditional):
    net = patterned(RefineNet.make({**TINY, "conditional": conditional}, image(8), 2, {"label": LABEL}))
    inputs = torch.randn(6, 1, 8, 8), torch.tensor([0.0, 1.0, 2.0, 2.0, 1.0, 0.0])
    out = net(*inputs, label=torch.arange(6))
    assert out.shape == (6, 2, 8, 8)
    out.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    assert (net(*inputs, label=torch.arange(6).flip(0)) - out).abs().amax((1, 2, 3)).min() > 1e-3


def test_residuals_are_added_to_what_the_refine_blocks_take():
    net = patterned(RefineNet.make(TINY, image(8), 1, {}))
    x, level = torch.randn(1, 1, 8, 8), torch.zeros(1)
    shapes = [(4, 8, 8), (8, 4, 4), (8, 4, 4), (8, 4, 4)]
    nothing = [torch.zeros(1, *shape) for shape in shapes]
    plain = net(x, level)
    assert torch.equal(net(x, level, residuals=nothing), plain)
    for i, shape in enumerate(shapes):
        bumped = [*nothing[:i], torch.randn(1, *shape), *nothing[i + 1 :]]
        assert (net(x, level, residuals=bumped) - plain).abs().max() > 1e-3


def test_an_item_does_not_depend_on_its_batch_mates():
    net = patterned(RefineNet.make(TINY, image(8), 1, {"label": LABEL}))
    x, level, label = torch.randn(5, 1, 8, 8), torch.arange(5) % 3 * 1.0, torch.arange(5)
    whole = net(x, level, label=label)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], label=label[i : i + 1]) for i in range(5)])
    assert (whole - alone).abs().max() < 1e-5


def test_sizes_that_do_not_fit_are_refused():
    net = RefineNet.make({**TINY, "depth": 5}, image(28), 1, {})
    assert net.stride == 4 and net(torch.zeros(1, 1, 12, 8), torch.zeros(1)).shape == (1, 1, 12, 8)
    with pytest.raises(GencliError, match=r"30×30.*stride 4") as caught:
        RefineNet.make({**TINY, "depth": 5}, image(30), 1, {})
    assert "28 or 32" in caught.value.hint
    with pytest.raises(GencliError, match="one pixel of 8×8"):
        RefineNet.make({**TINY, "depth": 6}, image(8), 1, {})
    with pytest.raises(GencliError, match="points"):
        RefineNet.make(TINY, Field("points", (2,)), 2, {})
