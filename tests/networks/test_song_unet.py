"""DDPM++ and NCSN++: official sizes, filters against SciPy's, and equality with an independent implementation."""

import math
import re

import pytest
import torch
from diffused import randomised
from scipy.signal import upfirdn
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.metrics._torchvision import import_torchvision
from gencli.networks._resample_blocks import Resample
from gencli.networks.song_unet import SongUNet, _Enter, _FilteredConv

LABEL, AUGMENT = Field("label", (), vocab=10), Field("augment", (9,))
NCSNPP = {"embedding": "fourier", "encoder": "residual", "filter": (1, 3, 3, 1)}
PYRAMIDS = {**NCSNPP, "encoder": "skip", "decoder": "skip"}
EDM = {"mults": (2, 2, 2)}
TINY = {"width": 8, "mults": (1, 2), "blocks": 1, "attention": (4,), "dropout": 0.0}
MORE = ("ncsn++-positional", "ddpm++-deep", "ncsn++-deep", "ncsn++-256", "ncsn++-1024")


def image(side, channels=1):
    return Field("image", (channels, side, side), vocab=256, range=(-1.0, 1.0))


@pytest.mark.parametrize(
    ("settings", "side", "cond", "official"),
    [
        (EDM, 32, {"augment": AUGMENT}, 55_733_891),
        (EDM, 32, {"augment": AUGMENT, "label": LABEL}, 55_735_299),
        ({**EDM, **NCSNPP}, 32, {"augment": AUGMENT}, 56_397_827),
        ({**EDM, **NCSNPP}, 32, {"augment": AUGMENT, "label": LABEL}, 56_400_643),
        ({}, 64, {"augment": AUGMENT}, 61_805_571),
        (NCSNPP, 64, {"augment": AUGMENT}, 62_761_091),
        ({}, 32, {}, 61_804_419),
        (NCSNPP, 32, {}, 62_758_787),
        ({**NCSNPP, "embedding": "positional"}, 32, {}, 62_693_251),
        ({"blocks": 8}, 32, {}, 106_632_579),
        ({**NCSNPP, "blocks": 8}, 32, {}, 107_586_947),
        ({**PYRAMIDS, "blocks": 2, "mults": (1, 1, 2, 2, 2, 2, 2)}, 256, {}, 65_574_421),
        ({**PYRAMIDS, "blocks": 1, "width": 16, "mults": (1, 2, 4, 8, 16, 32, 32, 32)}, 1024, {}, 105_785_880),
    ],
    ids=["edm-vp", "edm-vp-cond", "edm-ve", "edm-ve-cond", "ffhq-vp", "ffhq-ve", "ddpm++", "ncsn++", *MORE],
)
def test_parameter_counts_are_the_official_ones(settings, side, cond, official):
    with torch.device("meta"):
        net = SongUNet.make(settings, image(side, 3), 3, cond)
    assert sum(p.numel() for p in net.parameters()) == official
    frozen = sum(b.numel() for name, b in net.named_buffers() if name in net.state_dict())
    assert frozen == (net.config.width if net.config.embedding == "fourier" else 0)  # 62,758,915 of NCSN++ in all


def along_both(x, taps, up, down, start, length):
    """Upsampled, filtered and downsampled by SciPy along rows, then columns, cropped to `length`."""
    for axis in (2, 3):
        wide = upfirdn(taps, x, up=up, down=1, axis=axis)
        x = wide.take(range(start, start + length * down, down), axis=axis)
    return torch.from_numpy(x)


@pytest.mark.parametrize("taps", [(1.0, 1.0), (1.0, 3.0, 3.0, 1.0), (1.0, 2.0, 4.0, 4.0, 2.0, 1.0)])
def test_filters_are_those_of_scipy(taps):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    weights, reach = [tap / sum(taps) for tap in taps], len(taps) // 2
    halved = along_both(x.numpy(), weights, 1, 2, reach, 3)
    doubled = along_both(x.numpy(), [2 * w for w in weights], 2, 1, reach - 1, 12)
    assert (Resample("down", taps)(x) - halved).abs().max() < 1e-7
    assert (Resample("up", taps)(x) - doubled).abs().max() < 1e-7


@pytest.mark.parametrize("taps", [(1.0, 1.0), (1.0, 3.0, 3.0, 1.0)])
def test_an_image_filtered_then_convolved_is_the_one_convolved_then_filtered(taps):
    layer = randomised(_FilteredConv(3, 4, taps)).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    whole = F.conv2d(F.pad(x, [len(taps) // 2] * 4), layer.conv.weight)  # at every pixel that the filter will see
    line = torch.tensor(taps, dtype=torch.float64) / sum(taps)
    expected = F.conv2d(whole, (line[:, None] * line).expand(4, 1, -1, -1), stride=2, groups=4)
    assert (layer(x) - expected - layer.conv.bias[:, None, None]).abs().max() < 1e-7


def test_what_the_residual_encoder_adds_goes_on_to_the_next_resolution():
    net = randomised(SongUNet.make({**TINY, **NCSNPP}, image(8), 1, {}))
    enter = net.down[1].enter
    assert isinstance(enter, _Enter)
    h, x, embedded = torch.randn(2, 8, 8, 8), torch.randn(2, 1, 8, 8), torch.randn(2, 32)
    made, passed = enter(h, x, embedded)
    expected = (enter.block(h, embedded) + enter.shrink(x)) / math.sqrt(2)
    assert torch.equal(made, passed) and (made - expected).abs().max() < 1e-5


def _peer_name(name):
    """Our parameter's name in diffusers, but for attention's q, k, v; two levels of one block each."""
    fixed = {"frequencies": "time_proj.weight", "time1": "time_embedding.linear_1", "time2": "time_embedding.linear_2"}
    head, _, rest = name.partition(".")
    if head in fixed:
        return f"{fixed[head]}.{rest}".rstrip(".")
    patterns = {
        r"middle\.0\.block": "mid_block.resnets.0",
        r"middle\.0\.look": "mid_block.attentions.0",
        r"middle\.1": "mid_block.resnets.1",
        r"down\.(\d)\.stages\.(\d)\.block": r"down_blocks.\1.resnets.\2",
        r"down\.(\d)\.stages\.(\d)\.look": r"down_blocks.\1.attentions.\2",
        r"down\.1\.enter\.block": "down_blocks.0.resnet_down",
        r"down\.1\.enter\.add": "down_blocks.0.skip_conv",
        r"up\.(\d)\.stages\.(\d)\.block": r"up_blocks.\1.resnets.\2",
        r"up\.(\d)\.stages\.\d\.look": r"up_blocks.\1.attentions.0",
        r"up\.0\.leave": "up_blocks.0.resnet_up",
        r"up\.0\.head\.(norm|conv)": r"up_blocks.0.skip_\1",
        r"up\.1\.head\.norm": "conv_norm_out",
        r"up\.1\.head\.conv": "conv_out",
    }
    for ours, theirs in patterns.items():
        name = re.sub(f"^{ours}", theirs, name)
    if "attentions" in name:
        return name.replace(".norm.", ".group_norm.").replace(".out.", ".to_out.0.")
    return name.replace(".level.", ".time_emb_proj.").replace(".shortcut.", ".conv_shortcut.")


def test_ncsnpp_equals_diffusers_with_copied_weights():
    """diffusers' network takes the logarithm of σ and divides by σ itself."""
    pytest.importorskip("diffusers")
    import_torchvision()  # which diffusers imports too
    import diffusers

    settings = {**PYRAMIDS, "width": 128, "mults": (1, 2), "blocks": 1, "attention": (4,)}
    ours = randomised(SongUNet.make(settings, image(8, 3), 3, {}))
    theirs = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(128, 256),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        time_embedding_type="fourier",
        mid_block_scale_factor=math.sqrt(2),
        norm_eps=1e-6,
        attention_head_dim=None,
    ).eval()
    state, copied = theirs.state_dict(), {}
    for key, weight in ours.state_dict().items():
        name = _peer_name(key)
        parts = zip("qkv", weight.chunk(3), strict=True) if ".qkv." in name else ()
        copied |= {name.replace(".qkv.", f".to_{part}."): piece for part, piece in parts} or {name: weight}
    theirs.load_state_dict({name: weight.reshape(state[name].shape) for name, weight in copied.items()})
    x, sigma = torch.randn(4, 3, 8, 8), torch.tensor([0.01, 0.3, 2.0, 50.0])
    with torch.no_grad():
        mine, other = ours(x, sigma.log()), theirs(x, sigma).sample * sigma[:, None, None, None]
    assert other.std() > 0.1
    assert (mine - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("settings", [{}, NCSNPP, PYRAMIDS])
def test_the_output_starts_near_zero_and_every_parameter_moves_it(settings):
    torch.manual_seed(0)
    net = SongUNet.make({**TINY, **settings}, image(8), 2, {"label": LABEL, "augment": AUGMENT})
    given = {"label": torch.tensor([0, 9, 10]), "augment": torch.randn(3, 9)}
    x, level = torch.randn(3, 1, 8, 8), torch.tensor([-1.0, 0.3, 0.9])
    out = net(x, level, **given)
    assert out.shape == (3, 2, 8, 8) and 0 < out.abs().max() < 1e-3
    randomised(net)(x, level, **given).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_a_label_is_a_linear_map_of_its_one_hot_vector_and_no_class_is_zeros():
    net = randomised(SongUNet.make(TINY, image(8), 1, {"label": LABEL}))
    level = torch.tensor([0.5, 0.5])
    made = net._embed(level, {"label": torch.tensor([3, 10])})
    waves = torch.stack([net._waves(level)[0] + math.sqrt(10) * net.label.weight[:, 3], net._waves(level)[1]])
    expected = F.silu(net.time2(F.silu(net.time1(waves + net.label.bias))))
    assert (made - expected).abs().max() < 1e-5 and (made[0] - made[1]).abs().max() > 1e-2


def test_fourier_waves_are_of_the_level_as_it_is():
    net = SongUNet.make({**TINY, **NCSNPP}, image(8), 1, {})
    level = torch.tensor([0.25], dtype=torch.float64)
    angle = math.pi / 2 * net.frequencies.double()
    assert torch.allclose(net._waves(level), torch.cat([angle.sin(), angle.cos()])[None])
    assert "frequencies" in net.state_dict()
    assert 12 < SongUNet.make({**TINY, **NCSNPP, "width": 256, "mults": (1,)}, image(8), 1, {}).frequencies.std() < 20


def test_no_augmentation_is_a_vector_of_zeros():
    net = randomised(SongUNet.make(TINY, image(8), 1, {"augment": AUGMENT}))
    x, level = torch.randn(2, 1, 8, 8), torch.tensor([1.0, 3.0])
    plain = net(x, level)
    assert torch.equal(net(x, level, augment=torch.zeros(2, 9)), plain)
    assert (net(x, level, augment=torch.ones(2, 9)) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("settings", [{}, NCSNPP])
def test_every_level_of_skips_reaches_the_output(settings):
    net = randomised(SongUNet.make({**TINY, **settings}, image(8), 1, {}))
    x, level = torch.randn(1, 1, 8, 8), torch.tensor([0.4])
    shapes = [(8, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4), (16, 4, 4)]  # kept maps, then the bottom
    nothing = [torch.zeros(1, *shape) for shape in shapes]
    plain = net(x, level)
    assert torch.equal(net(x, level, residuals=nothing), plain)
    for i, shape in enumerate(shapes):
        bumped = [*nothing[:i], torch.randn(1, *shape), *nothing[i + 1 :]]
        assert (net(x, level, residuals=bumped) - plain).abs().max() > 1e-3


def test_an_item_does_not_depend_on_its_batch_mates():
    net = randomised(SongUNet.make({**TINY, **NCSNPP}, image(8), 1, {"label": LABEL}))
    x, level, label = torch.randn(7, 1, 8, 8), torch.arange(7) / 5, torch.arange(7) + 4
    whole = net(x, level, label=label)
    alone = torch.cat([net(x[i : i + 1], level[i : i + 1], label=label[i : i + 1]) for i in range(7)])
    assert (whole - alone).abs().max() < 1e-5


@pytest.mark.parametrize("sides", [(4, 4), (12, 20), (28, 28)])
def test_output_has_the_input_shape_at_every_multiple_of_the_stride(sides):
    net = randomised(SongUNet.make({**TINY, **PYRAMIDS, "mults": (1, 2, 2)}, image(8), 2, {}))
    assert net.stride == 4
    assert net(torch.zeros(2, 1, *sides), torch.zeros(2)).shape == (2, 2, *sides)


def test_what_cannot_be_built_is_refused_by_name():
    for taps in ((1, 2, 1), (1, 2), (1, -1, -1, 1)):
        with pytest.raises(GencliError, match=f"filter {','.join(map(str, taps))} "):
            SongUNet.make({**TINY, "filter": taps}, image(8), 1, {})
    with pytest.raises(GencliError, match=r"song-unet.*points"):
        SongUNet.make(TINY, Field("points", (2,)), 2, {})
    with pytest.raises(GencliError, match="'text'"):
        SongUNet.make(TINY, image(8), 1, {"text": Field("tokens", (16,), vocab=100)})
    with pytest.raises(GencliError, match="'augment'"):
        SongUNet.make(TINY, image(8), 1, {"augment": Field("image", (3, 8, 8))})
    with pytest.raises(GencliError, match=r"7×7.*stride 2"):
        SongUNet.make(TINY, image(7), 1, {})
