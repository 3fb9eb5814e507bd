"""U-ViT: official sizes and outputs, tokens, long skips."""

import pytest
import torch
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks.uvit import UViT

LABEL = Field("label", (), vocab=5)
TINY = {"patch": 2, "width": 16, "depth": 4, "heads": 2}


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
    ("settings", "shape", "rows", "count"),
    [
        ({"patch": 2, "width": 512, "depth": 12, "heads": 8}, (3, 32, 32), 0, 44_255_328),
        ({"patch": 4, "width": 512, "depth": 12, "heads": 8}, (3, 64, 64), 0, 44_292_228),
        ({"patch": 4, "width": 768, "depth": 16, "heads": 12}, (3, 64, 64), 1000, 130_940_292),
        ({"patch": 4, "width": 1024, "depth": 20, "heads": 16}, (3, 64, 64), 1000, 286_827_652),
        ({"patch": 2, "width": 1024, "depth": 20, "heads": 16}, (4, 32, 32), 1001, 286_763_172),
        ({"patch": 2, "width": 1152, "depth": 28, "heads": 16, "conv": False}, (4, 32, 32), 1001, 500_832_016),
    ],
    ids=["S/2 CIFAR-10", "S/4 CelebA", "M/4 ImageNet-64", "L/4 ImageNet-64", "L/2 ImageNet-256", "H/2 ImageNet-256"],
)
def test_parameter_counts_are_the_official_ones(settings, shape, rows, count):
    cond = {"label": Field("label", (), vocab=rows - 1)} if rows else {}  # rows: with the one for "no class"
    with torch.device("meta"):
        net = UViT.make(settings, Field("image", shape), shape[0], cond)
    assert sum(p.numel() for p in net.parameters()) == count


def test_outputs_equal_the_official_code():
    """Numbers from the authors' code with these weights copied into it (2 images 3×8×8, 6 rows of labels)."""
    net = patterned(UViT.make({**TINY, "width": 24, "heads": 3}, image(8, 3), 3, {"label": LABEL}))
    with torch.no_grad():
        made = net(hashed((2, 3, 8, 8), 0), torch.tensor([3.0, 500.0]), label=torch.tensor([1, 5]))
    official = torch.tensor([-1.7422, -0.7594, -0.1892, -0.9059, -2.7640, -0.2564, 0.1175, -0.8227, -2.1703])
    assert (made.flatten()[::47] - official).abs().max() < 2e-4
    assert abs(float(made.std()) - 0.8159) < 2e-4


def test_a_block_is_the_documented_equation():
    """With torch's own multi-head attention."""
    net = patterned(UViT.make({**TINY, "qkv_bias": True}, image(8), 1, {}))
    block = net.up[1]
    look = torch.nn.MultiheadAttention(16, 2, batch_first=True)
    look.in_proj_weight, look.in_proj_bias = block.qkv.weight, block.qkv.bias
    look.out_proj.weight, look.out_proj.bias = block.proj.weight, block.proj.bias
    h, kept = torch.randn(2, 9, 16), torch.randn(2, 9, 16)
    expected = torch.cat([h, kept], -1) @ block.skip.weight.T + block.skip.bias
    inner = F.layer_norm(expected, (16,), block.norm1.weight, block.norm1.bias)
    expected = expected + look(inner, inner, inner, need_weights=False)[0]
    inner = F.layer_norm(expected, (16,), block.norm2.weight, block.norm2.bias) @ block.up.weight.T + block.up.bias
    expected = expected + F.gelu(inner) @ block.down.weight.T + block.down.bias
    assert (block(h, kept) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("cond", [{}, {"label": LABEL}], ids=["level", "level and class"])
def test_patches_level_and_class_are_tokens(cond):
    net = patterned(UViT.make(TINY, image(8), 1, cond))
    seen = []
    net.middle.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    net(torch.randn(1, 1, 8, 8), torch.zeros(1), label=torch.zeros(1, dtype=torch.long))
    assert seen == [16 + 1 + len(cond)] and len(net.positions) == seen[0]


def test_every_long_skip_reaches_the_output():
    net = patterned(UViT.make(TINY, image(8), 1, {}))
    x, level = torch.randn(1, 1, 8, 8), torch.tensor([7.0])
    plain = net(x, level)
    for block in net.up:
        kept = block.skip.weight[:, 16:].clone()
        with torch.no_grad():
            block.skip.weight[:, 16:] = 0
        assert (net(x, level) - plain).abs().max() > 1e-2
        with torch.no_grad():
            block.skip.weight[:, 16:] = kept
    nothing = [torch.zeros(1, 17, 16) for _ in range(3)]
    assert torch.equal(net(x, level, residuals=nothing), plain)
    for i in range(3):
        bumped = [*nothing[:i], torch.randn(1, 17, 16), *nothing[i + 1 :]]
        assert (net(x, level, residuals=bumped) - plain).abs().max() > 1e-2


def test_every_parameter_moves_the_output():
    torch.manual_seed(0)
    net = UViT.make(TINY, image(8), 2, {"label": LABEL})
    inputs = torch.randn(6, 1, 8, 8), torch.linspace(0, 999, 6)
    net(*inputs, label=torch.arange(6)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_an_item_does_not_depend_on_its_batch_mates():
    net = patterned(UViT.make(TINY, image(8), 1, {"label": LABEL}))
    x, level, label = torch.randn(6, 1, 8, 8), torch.arange(6) * 100.0, torch.arange(6)
    whole = net(x, level, label=label)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], label=label[i : i + 1]) for i in range(6)])
    assert (whole - alone).abs().max() < 1e-5


def test_sizes_that_do_not_fit_are_refused():
    assert UViT.make({**TINY, "patch": 0}, image(28), 1, {}).stride == 4
    with pytest.raises(GencliError, match=r"9×9.*stride 2"):
        UViT.make(TINY, image(9), 1, {})
    with pytest.raises(GencliError, match=r"width 16.*3 heads"):
        UViT.make({**TINY, "heads": 3}, image(8), 1, {})
    with pytest.raises(GencliError, match="depth 5 is odd") as caught:
        UViT.make({**TINY, "depth": 5}, image(8), 1, {})
    assert "4 or 6" in caught.value.hint
    with pytest.raises(GencliError, match="points"):
        UViT.make(TINY, Field("points", (2,)), 2, {})
