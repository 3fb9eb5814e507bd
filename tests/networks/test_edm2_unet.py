"""EDM2's U-Net: official sizes and outputs, magnitudes at the start, classes."""

import pytest
import torch

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.edm2_unet import Edm2UNet

LABEL = Field("label", (), vocab=5)
TINY = {"width": 16, "mults": (1, 2), "blocks": 1, "attention": (4,)}


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
        net.waves.frequency.copy_(hashed(net.waves.frequency.shape, 1000) * 6)
        net.waves.phase.copy_(hashed(net.waves.phase.shape, 1001) * 2)
    return net.eval()


@pytest.mark.parametrize(
    ("width", "channels", "classes", "official"),
    [
        (64, 4, 1000, 31_309_029),
        (128, 4, 1000, 124_713_253),
        (128, 4, 0, 124_201_253),
        (192, 3, 1000, 280_209_381),
    ],
    ids=["XXS", "XS", "XS without classes", "S ImageNet-64"],
)
def test_parameter_counts_are_the_official_ones(width, channels, classes, official):
    cond = {"label": Field("label", (), vocab=classes)} if classes else {}
    with torch.device("meta"):
        net = Edm2UNet.make({"width": width}, Field("latent", (channels, 64, 64)), channels, cond)
    assert sum(p.numel() for p in net.parameters()) + 128 == official  # 128 of the loss's log-variance


@pytest.mark.parametrize(
    ("settings", "cond", "std", "official"),
    [
        (
            {"width": 64, "mults": (1, 2), "blocks": 1, "attention": (4,)},
            {"label": LABEL},
            0.9580,
            [0.6342, 0.8928, -0.0815, 1.1511, -0.2689, -0.2999, -0.6192, 2.3794, -0.2336, -0.7998],
        ),
        (
            {"width": 128, "mults": (1,), "blocks": 1, "attention": (8,)},
            {},
            0.9379,
            [-1.5981, -1.2517, 0.6060, -0.2718, 0.9924, -0.2276, -0.3731, -0.2024, 0.1209, 0.7196],
        ),
    ],
    ids=["labels", "two heads"],
)
def test_outputs_equal_the_official_code(settings, cond, std, official):
    """Numbers from the authors' code with these weights copied into it; the second label is the null."""
    net = patterned(Edm2UNet.make(settings, image(8, 3), 3, cond))
    with torch.no_grad():
        made = net(hashed((2, 3, 8, 8), 0), torch.tensor([-0.4, 0.7]), label=torch.tensor([1, 5]))
    assert (made.flatten()[5::41] - torch.tensor(official)).abs().max() < 2e-4
    assert abs(float(made.std(correction=0)) - std) < 1e-4


def test_every_feature_map_starts_with_unit_magnitude():
    torch.manual_seed(0)
    net = Edm2UNet.make({**TINY, "width": 64, "mults": (1, 2, 2)}, image(16, 3), 3, {"label": LABEL})
    magnitudes = []
    for block in [*net.encoder, *net.middle, *net.decoder]:
        block.register_forward_hook(lambda _, __, h: magnitudes.append(float(h.detach().square().mean().sqrt())))
    net(torch.randn(8, 3, 16, 16), torch.linspace(-1, 1, 8), label=torch.arange(8) % 5)
    assert len(magnitudes) == 5 + 2 + 8 and min(magnitudes) > 0.75 and max(magnitudes) < 1.1


def test_the_output_starts_at_zero_with_a_gradient():
    torch.manual_seed(0)
    net = Edm2UNet.make(TINY, image(8), 2, {"label": LABEL})
    out = net(torch.randn(3, 1, 8, 8), torch.tensor([-1.0, 0.0, 1.0]), label=torch.tensor([0, 4, 5]))
    assert out.shape == (3, 2, 8, 8) and not out.any()
    (out - 1).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters()) and net.gain.grad.abs() > 0


def test_every_parameter_moves_the_output_and_the_length_of_weights_does_not():
    net = patterned(Edm2UNet.make(TINY, image(8), 1, {"label": LABEL}))
    inputs, label = (torch.randn(6, 1, 8, 8), torch.linspace(-1, 1, 6)), torch.arange(6)
    out = net(*inputs, label=label)
    out.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
    with torch.no_grad():
        for weight in net.parameters():
            weight.mul_(3.0 if weight.ndim else 1.0)
    longer = net(*inputs, label=label)
    assert (longer - out).abs().max() < 0.01 * out.abs().max()
    net.normalise()
    assert (net(*inputs, label=label) - longer).abs().max() < 0.01 * out.abs().max()
    stored = [w.detach().square().mean().sqrt() for w in net.parameters() if w.ndim]
    assert max(abs(float(m) - 1) for m in stored) < 1e-3


def test_the_null_label_is_no_class_and_classes_differ():
    net = patterned(Edm2UNet.make(TINY, image(8), 1, {"label": LABEL}))
    x, level = torch.randn(1, 1, 8, 8).expand(6, -1, -1, -1), torch.zeros(6)
    made = net(x, level, label=torch.arange(6)).flatten(1)
    assert (torch.cdist(made, made) + 99 * torch.eye(6)).min() > 1e-2
    with torch.no_grad():
        net.label.weight.mul_(-1)
    turned = net(x, level, label=torch.arange(6)).flatten(1)
    moved = (turned - made).abs().amax(1)
    assert moved[5] < 1e-5 and moved[:5].min() > 1e-3


def test_every_level_of_skips_reaches_the_output():
    net = patterned(Edm2UNet.make(TINY, image(8), 1, {}))
    x, level = torch.randn(1, 1, 8, 8), torch.tensor([0.3])
    shapes = [(16, 8, 8), (16, 8, 8), (16, 4, 4), (32, 4, 4), (32, 4, 4)]  # kept maps, then the bottom
    nothing = [torch.zeros(1, *shape) for shape in shapes]
    plain = net(x, level)
    assert torch.equal(net(x, level, residuals=nothing), plain)
    for i, shape in enumerate(shapes):
        bumped = [*nothing[:i], torch.randn(1, *shape), *nothing[i + 1 :]]
        assert (net(x, level, residuals=bumped) - plain).abs().max() > 1e-3


def test_activations_are_clipped():
    block = patterned(Edm2UNet.make(TINY, image(8), 1, {})).decoder[-1]
    assert block(torch.full((1, 32, 8, 8), 1e4), torch.zeros(1, 32)).abs().max() == 256


def test_an_item_does_not_depend_on_its_batch_mates():
    net = patterned(Edm2UNet.make(TINY, image(8), 1, {"label": LABEL}))
    x, level, label = torch.randn(6, 1, 8, 8), torch.linspace(-1, 1, 6), torch.arange(6)
    whole = net(x, level, label=label)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], label=label[i : i + 1]) for i in range(6)])
    assert (whole - alone).abs().max() < 1e-5


@pytest.mark.parametrize(("width", "heads"), [(16, 1), (96, 1), (192, 3), (224, 2), (1024, 16)])
def test_heads_divide_the_channels_and_have_64_or_more(width, heads):
    with torch.device("meta"):
        net = Edm2UNet.make({**TINY, "width": width, "mults": (1,), "attention": (8,)}, image(8), 1, {})
    assert net.encoder[0].attention.heads == heads


def test_sizes_that_do_not_fit_are_refused():
    net = Edm2UNet.make({**TINY, "mults": (1, 2, 2)}, image(28), 1, {})
    assert net.stride == 4 and net(torch.zeros(1, 1, 12, 8), torch.zeros(1)).shape == (1, 1, 12, 8)
    with pytest.raises(GencliError, match=r"30×30.*stride 4") as caught:
        Edm2UNet.make({**TINY, "mults": (1, 2, 2)}, image(30), 1, {})
    assert "28 or 32" in caught.value.hint
    with pytest.raises(GencliError, match="points"):
        Edm2UNet.make(TINY, Field("points", (2,)), 2, {})
