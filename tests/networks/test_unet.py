"""DDPM's U-Net: the official architecture, held to an independent implementation."""

import re

import pytest
import torch
from diffused import randomised

from gencli.core import Field
from gencli.errors import GencliError
from gencli.metrics._torchvision import import_torchvision
from gencli.networks.unet import UNet
from gencli.nn.attention import attend
from gencli.nn.embed import sinusoidal

LABEL = Field("label", (), vocab=10)
TINY = {"width": 8, "mults": (1, 2), "blocks": 1, "attention": (4,)}


def image(side, channels=1):
    return Field("image", (channels, side, side), vocab=256, range=(-1.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "side", "count"),
    [({}, 32, 35_746_307), ({"mults": (1, 1, 2, 2, 4, 4)}, 256, 113_673_219)],
    ids=["cifar10", "celebahq"],
)
def test_parameter_counts_are_the_official_ones(settings, side, count):
    with torch.device("meta"):
        net = UNet.make(settings, image(side, 3), 3, {})
    assert sum(p.numel() for p in net.parameters()) == count


def test_cifar_network_has_the_official_tensors():
    with torch.device("meta"):
        net = UNet.make({}, image(32, 3), 3, {})
    shapes = [tuple(p.shape) for p in net.parameters()]
    assert len(shapes) == 328
    assert (
        shapes.count((256, 384, 3, 3)) == 1 and shapes.count((128, 384, 3, 3)) == 1
    )  # where the widths change on the way up
    assert shapes.count((256, 256)) == 4 * 6  # five attentions at 16×16 (two down, three up) and one in the middle


def test_label_adds_a_row_per_class_and_a_null():
    with torch.device("meta"):
        plain = UNet.make(TINY, image(8), 1, {})
        labelled = UNet.make(TINY, image(8), 1, {"label": LABEL})
    grown = sum(p.numel() for p in labelled.parameters()) - sum(p.numel() for p in plain.parameters())
    assert grown == 11 * 4 * 8


def _peer_name(name):
    """Our parameter's name in diffusers."""
    fixed = {"conv_in": "conv_in", "conv_out": "conv_out", "norm_out": "conv_norm_out"}
    fixed |= {"time1": "time_embedding.linear_1", "time2": "time_embedding.linear_2", "label": "class_embedding"}
    head, _, rest = name.partition(".")
    if head in fixed:
        return f"{fixed[head]}.{rest}"
    name = re.sub(r"^(down|up)\.", r"\1_blocks.", name).replace(".blocks.", ".resnets.")
    name = re.sub(r"^(down)(_blocks\.\d+)\.resample", r"\1\2.downsamplers.0.conv", name)
    name = re.sub(r"^(up)(_blocks\.\d+)\.resample", r"\1\2.upsamplers.0.conv", name)
    middle = {"0": "mid_block.resnets.0", "1": "mid_block.attentions.0", "2": "mid_block.resnets.1"}
    name = re.sub(r"^middle\.(\d)", lambda m: middle[m.group(1)], name)
    if "attentions" in name:
        name = re.sub(r"\.([qkv])\.", r".to_\1.", name).replace(".norm.", ".group_norm.").replace(".out.", ".to_out.0.")
    return name.replace(".level.", ".time_emb_proj.").replace(".shortcut.", ".conv_shortcut.")


def test_outputs_equal_diffusers_with_copied_weights():
    pytest.importorskip("diffusers")
    import_torchvision()  # which diffusers imports too
    import diffusers

    settings = {"width": 128, "mults": (1, 2, 1), "blocks": 2, "attention": (4,)}
    ours = randomised(UNet.make(settings, image(8, 3), 3, {"label": LABEL}))
    theirs = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=2,
        block_out_channels=(128, 256, 128),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        norm_eps=1e-6,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        attention_head_dim=None,
        num_class_embeds=11,
    ).eval()
    state = theirs.state_dict()
    copied = {_peer_name(name): weight for name, weight in ours.state_dict().items()}
    for name, weight in copied.items():
        copied[name] = weight.reshape(state[name].shape)
    theirs.load_state_dict(copied)
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    level, label = torch.tensor([0, 1, 37, 500, 999]), torch.tensor([0, 3, 9, 10, 5])
    with torch.no_grad():
        mine, other = ours(x, level, label=label), theirs(x, level, class_labels=label).sample
    assert other.std() > 0.1
    assert (mine - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("sides", [(4, 4), (8, 4), (12, 20)])
def test_output_has_the_input_shape_at_every_multiple_of_the_stride(sides):
    net = randomised(UNet.make({**TINY, "mults": (1, 2, 2)}, image(8), 2, {}))
    assert net.stride == 4
    assert net(torch.zeros(2, 1, *sides), torch.zeros(2)).shape == (2, 2, *sides)


def test_the_first_level_may_be_wider_than_the_first_layer():
    net = randomised(UNet.make({"width": 8, "mults": (2, 3), "blocks": 1, "attention": ()}, image(8), 1, {}))
    made = net(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1.0, 5.0]))
    assert made.shape == (2, 1, 8, 8) and net.norm_out.num_channels == 16


def test_28_pixels_work_with_three_levels():
    net = randomised(UNet.make({**TINY, "mults": (1, 2, 2), "attention": (7,)}, image(28), 1, {}))
    assert sum("attentions" in name for name, _ in net.named_parameters()) == 10 * 3  # one block down, two up, at 7×7
    assert net(torch.zeros(1, 1, 28, 28), torch.zeros(1)).shape == (1, 1, 28, 28)


def test_a_side_that_is_not_divisible_is_refused_with_the_nearest_that_are():
    with pytest.raises(GencliError, match=r"30×30.*stride 8") as caught:
        UNet.make({**TINY, "mults": (1, 1, 1, 1)}, image(30), 1, {})
    assert "24 or 32" in caught.value.hint
    net = UNet.make(TINY, image(8), 1, {})
    with pytest.raises(GencliError, match=r"7×8.*stride 2"):
        net(torch.zeros(1, 1, 7, 8), torch.zeros(1))


def test_points_and_unknown_conditions_are_refused_by_name():
    with pytest.raises(GencliError, match="points"):
        UNet.make(TINY, Field("points", (2,)), 2, {})
    with pytest.raises(GencliError, match="'text'"):
        UNet.make(TINY, image(8), 1, {"text": Field("tokens", (16,), vocab=100)})


def test_every_level_of_skips_reaches_the_output():
    net = randomised(UNet.make({**TINY, "mults": (1, 2, 2)}, image(8), 1, {}))
    x, level = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([3.0])
    shapes = [
        (8, 8, 8),
        (8, 8, 8),
        (8, 4, 4),
        (16, 4, 4),
        (16, 2, 2),
        (16, 2, 2),
        (16, 2, 2),
    ]  # kept maps, then the bottom
    nothing = [torch.zeros(1, *shape) for shape in shapes]
    plain = net(x, level)
    assert torch.equal(net(x, level, residuals=nothing), plain)
    for i, shape in enumerate(shapes):
        bumped = [*nothing[:i], torch.randn(1, *shape), *nothing[i + 1 :]]
        assert (net(x, level, residuals=bumped) - plain).abs().max() > 1e-3


def test_the_output_starts_at_almost_nothing_and_every_parameter_has_a_gradient():
    torch.manual_seed(0)
    net = UNet.make(TINY, image(8), 1, {"label": LABEL})
    out = net(torch.randn(3, 1, 8, 8), torch.tensor([0.0, 5.0, 999.0]), label=torch.tensor([0, 9, 10]))
    assert 0 < out.abs().max() < 1e-3
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_an_item_does_not_depend_on_its_batch_mates():
    net = randomised(UNet.make(TINY, image(8), 1, {"label": LABEL}))
    x, level, label = torch.randn(7, 1, 8, 8), torch.arange(7) * 100.0, torch.arange(7)
    whole = net(x, level, label=label)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], label=label[i : i + 1]) for i in range(7)])
    assert (whole - alone).abs().max() < 1e-5


def test_the_level_and_the_label_change_the_output_at_every_width():
    for width in (4, 8, 16, 32):
        net = randomised(UNet.make({**TINY, "width": width, "attention": ()}, image(8), 1, {"label": LABEL}))
        x, level, label = torch.randn(1, 1, 8, 8), torch.tensor([3.0]), torch.tensor([1])
        plain = net(x, level, label=label)
        assert (net(x, level + 500, label=label) - plain).abs().max() > 1e-3
        assert (net(x, level, label=label + 1) - plain).abs().max() > 1e-3


def test_plain_attention_equals_the_fused_kernel():
    q, k, v = torch.randn(3, 2, 3, 9, 16, dtype=torch.float64).unbind(0)
    expected = ((q @ k.transpose(-1, -2)) / 4).softmax(-1) @ v
    assert (attend(q, k, v) - expected).abs().max() < 1e-12
    half = [t.bfloat16() for t in (q, k, v)]
    assert (attend(*half).double() - expected).abs().max() < 0.05


def test_level_embedding_is_sine_first_from_frequency_1_to_1_over_10000():
    made = sinusoidal(torch.tensor([0.0, 2.0], dtype=torch.float64), 6)
    frequency = torch.tensor([1.0, 0.01, 0.0001], dtype=torch.float64)
    assert torch.equal(made[0], torch.tensor([0, 0, 0, 1, 1, 1], dtype=torch.float64))
    assert torch.allclose(made[1], torch.cat([(2 * frequency).sin(), (2 * frequency).cos()]), atol=1e-12)
