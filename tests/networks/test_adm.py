"""ADM's U-Net: official sizes, equality with an independent implementation, and what starts at zero."""

import re

import pytest
import torch
from diffused import randomised

from gencli.core import Field
from gencli.errors import GencliError
from gencli.metrics._torchvision import import_torchvision
from gencli.networks._resample_blocks import norm
from gencli.networks.adm import Adm

LABEL, CLASSES = Field("label", (), vocab=5), Field("label", (), vocab=1000)
AUGMENT = Field("augment", (9,))
TINY = {"width": 8, "mults": (1, 2), "blocks": 1, "attention": (4,), "head_width": 4}
IDDPM = {"width": 128, "head_width": 0, "attention": (16, 8), "resample": "conv"}
CIFAR = {"width": 128, "mults": (1, 2, 2, 2), "attention": (16,)}


def image(side, channels=1):
    return Field("image", (channels, side, side), vocab=256, range=(-1.0, 1.0))


def count(settings, side, out, cond):
    with torch.device("meta"):
        net = Adm.make(settings, image(side, 3), out, cond)
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("settings", "side", "out", "official"),
    [
        ({**IDDPM, "mults": (1, 2, 2, 2)}, 32, 6, 52_546_438),
        (IDDPM, 64, 6, 121_063_942),
        ({"width": 256, "blocks": 2, "mults": (1, 1, 2, 2, 4, 4)}, 256, 6, 552_814_086),
        ({**CIFAR, "blocks": 2, "resample": "conv", "scale_shift": False}, 32, 3, 35_746_307),
        (
            {**CIFAR, "mults": (2, 2, 2), "blocks": 4, "resample": "pool", "head_width": 0, "heads": 1},
            32,
            3,
            55_676_419,
        ),
    ],
    ids=["iddpm-cifar10", "iddpm-64", "adm-256", "torchcfm-cifar10", "flow_matching-cifar10"],
)
def test_parameter_counts_are_the_official_ones(settings, side, out, official):
    assert count(settings, side, out, {}) == official


@pytest.mark.parametrize(
    ("settings", "side", "out", "official"),
    [
        ({**IDDPM, "width": 192}, 64, 6, 273_049_350),
        ({}, 64, 6, 295_904_454),
        ({}, 64, 3, 295_899_267),
        ({"width": 256, "blocks": 2, "mults": (1, 1, 2, 3, 4), "head_width": 0}, 128, 6, 421_529_606),
        ({"width": 256, "blocks": 2, "mults": (1, 1, 2, 2, 4, 4)}, 256, 6, 553_838_086),
        ({"width": 256, "blocks": 2, "mults": (0.5, 1, 1, 2, 2, 4, 4)}, 512, 6, 558_997_638),
    ],
    ids=["iddpm-64", "64", "edm-64", "128", "256", "512"],
)
def test_with_classes_they_are_the_official_ones_and_a_row_for_no_class(settings, side, out, official):
    assert count(settings, side, out, {"label": CLASSES}) == official + 4 * settings.get("width", 192)


def test_flow_matching_s_imagenet_network_has_that_row_too():
    assert count({}, 64, 3, {"label": CLASSES}) == 295_900_035


def test_norms_have_32_groups_of_4_channels_or_more():
    groups = {channels: norm(channels, 1e-5).num_groups for channels in (2, 8, 100, 128, 192, 1344)}
    assert groups == {2: 1, 8: 2, 100: 25, 128: 32, 192: 32, 1344: 32}


def _peer_name(name):
    """Our parameter's name in diffusers, but for attention's q, k, v."""
    name = re.sub(r"^path\.time\.0", "time_embedding.linear_1", name).replace("path.time.2", "time_embedding.linear_2")
    name = name.replace("label.", "class_embedding.").replace("path.conv_in", "conv_in")
    name = name.replace("norm_out.", "conv_norm_out.")
    name = name.replace("path.middle.0.block.", "mid_block.resnets.0.").replace(
        "path.middle.1.", "mid_block.resnets.1."
    )
    name = name.replace("path.middle.0.look.", "mid_block.attentions.0.")
    if match := re.match(r"path\.down\.(\d+)\.(block|look)?\.?(.*)", name):
        level, i = divmod(int(match[1]), 3)  # two blocks and what halves the side
        kind = {"block": f"resnets.{i}", "look": f"attentions.{i}", None: "downsamplers.0"}[match[2]]
        name = f"down_blocks.{level}.{kind}.{match[3]}"
    if match := re.match(r"up\.(\d+)\.(block|look|leave)\.(.*)", name):
        level, i = divmod(int(match[1]), 3)
        kind = {"block": f"resnets.{i}", "look": f"attentions.{i}", "leave": "upsamplers.0"}[match[2]]
        name = f"up_blocks.{level}.{kind}.{match[3]}"
    if "attentions" in name:
        return name.replace(".norm.", ".group_norm.").replace(".out.", ".to_out.0.")
    return name.replace(".level.", ".time_emb_proj.").replace(".shortcut.", ".conv_shortcut.")


def as_diffusers(net, state):
    """Our weights under the names and in the shapes of diffusers."""
    made = {}
    for key, weight in net.state_dict().items():
        name = _peer_name(key)
        if ".qkv." in name:
            made |= {name.replace(".qkv.", f".to_{part}."): w for part, w in zip("qkv", weight.chunk(3), strict=True)}
        else:
            made[name] = weight
    return {name: weight.reshape(state[name].shape) for name, weight in made.items()}


@pytest.mark.parametrize(("resample", "scale_shift"), [("block", True), ("conv", False)])
def test_outputs_equal_diffusers_with_copied_weights(resample, scale_shift):
    pytest.importorskip("diffusers")
    import_torchvision()  # which diffusers imports too
    import diffusers

    settings = {"width": 128, "mults": (1, 2, 1), "blocks": 2, "attention": (4,), "head_width": 64}
    settings |= {"resample": resample, "scale_shift": scale_shift}
    ours = randomised(Adm.make(settings, image(8, 3), 6, {"label": LABEL}))
    kind, plain = ("resnet", "ResnetDownsampleBlock2D") if resample == "block" else ("conv", "DownBlock2D")
    theirs = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        layers_per_block=2,
        block_out_channels=(128, 256, 128),
        down_block_types=(plain, "AttnDownBlock2D", plain),
        up_block_types=(plain.replace("Down", "Up"), "AttnUpBlock2D", plain.replace("Down", "Up")),
        downsample_type=kind,
        upsample_type=kind,
        resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        attn_norm_num_groups=32,
        flip_sin_to_cos=True,
        freq_shift=0,
        attention_head_dim=64,
        num_class_embeds=6,
    ).eval()
    theirs.load_state_dict(as_diffusers(ours, theirs.state_dict()))
    x = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    level, label = torch.tensor([0, 1, 37, 500, 999]), torch.tensor([0, 3, 4, 5, 1])
    with torch.no_grad():
        mine, other = ours(x, level, label=label), theirs(x, level, class_labels=label).sample
    assert other.std() > 0.1
    assert (mine - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


def test_the_output_is_zero_at_the_start_and_what_leads_to_it_has_gradients():
    torch.manual_seed(0)
    net = Adm.make(TINY, image(8), 2, {"label": LABEL, "augment": AUGMENT})
    label, level = torch.tensor([0, 4, 5]), torch.tensor([0.0, 5.0, 999.0])
    out = net(torch.randn(3, 1, 8, 8), level, label=label, augment=torch.randn(3, 9))
    assert out.shape == (3, 2, 8, 8) and not out.any()
    out.sum().backward()
    assert all(p.grad is not None for p in net.parameters()) and net.conv_out.weight.grad.any()


@pytest.mark.parametrize("settings", [{}, {"resample": "conv", "scale_shift": False}, {"resample": "pool"}])
def test_every_parameter_moves_the_output(settings):
    net = randomised(Adm.make({**TINY, **settings}, image(8), 1, {"label": LABEL, "augment": AUGMENT}))
    x, level, label = torch.randn(3, 1, 8, 8), torch.tensor([0.0, 5.0, 999.0]), torch.tensor([0, 4, 5])
    net(x, level, label=label, augment=torch.randn(3, 9)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_no_augmentation_is_a_vector_of_zeros():
    net = randomised(Adm.make(TINY, image(8), 1, {"augment": AUGMENT}))
    x, level = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 3.0])
    plain = net(x, level)
    assert torch.equal(net(x, level, augment=torch.zeros(2, 9)), plain)
    assert (net(x, level, augment=torch.ones(2, 9)) - plain).abs().max() > 1e-3


def test_every_level_of_skips_reaches_the_output():
    net = randomised(Adm.make(TINY, image(8), 1, {}))
    x, level = torch.randn(1, 1, 8, 8), torch.tensor([3.0])
    shapes = [(8, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4), (16, 4, 4)]  # kept maps, then the bottom
    nothing = [torch.zeros(1, *shape) for shape in shapes]
    plain = net(x, level)
    assert torch.equal(net(x, level, residuals=nothing), plain)
    for i, shape in enumerate(shapes):
        bumped = [*nothing[:i], torch.randn(1, *shape), *nothing[i + 1 :]]
        assert (net(x, level, residuals=bumped) - plain).abs().max() > 1e-3


def test_an_item_does_not_depend_on_its_batch_mates():
    net = randomised(Adm.make(TINY, image(8), 1, {"label": LABEL}))
    x, level, label = torch.randn(7, 1, 8, 8), torch.arange(7) * 100.0, torch.arange(7) % 6
    whole = net(x, level, label=label)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], label=label[i : i + 1]) for i in range(7)])
    assert (whole - alone).abs().max() < 1e-5


@pytest.mark.parametrize("sides", [(4, 4), (12, 20), (28, 28)])
def test_output_has_the_input_shape_at_every_multiple_of_the_stride(sides):
    net = randomised(Adm.make({**TINY, "mults": (0.5, 1, 2)}, image(8), 2, {}))
    assert net.stride == 4 and net.conv_out.in_channels == 4
    assert net(torch.zeros(2, 1, *sides), torch.zeros(2)).shape == (2, 2, *sides)


def test_what_cannot_be_built_is_refused_by_name():
    with pytest.raises(GencliError, match="points"):
        Adm.make(TINY, Field("points", (2,)), 2, {})
    with pytest.raises(GencliError, match="'text'"):
        Adm.make(TINY, image(8), 1, {"text": Field("tokens", (16,), vocab=100)})
    with pytest.raises(GencliError, match=r"7×7.*stride 2"):
        Adm.make(TINY, image(7), 1, {})
    with pytest.raises(GencliError, match=r"8 channels.*head-width 64"):
        Adm.make({**TINY, "head_width": 64}, image(4), 1, {})
    with pytest.raises(GencliError, match=r"16 channels.*3 heads"):
        Adm.make({**TINY, "head_width": 0, "heads": 3}, image(8), 1, {})
    with pytest.raises(GencliError, match=r"width 8 times 1,0\.1"):
        Adm.make({**TINY, "mults": (1, 0.1)}, image(8), 1, {})
