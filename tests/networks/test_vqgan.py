"""VQGAN's networks: released counts, where attention is, what a patch sees; LPIPS against VGG-16."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from gencli.core import Field
from gencli.errors import GencliError
from gencli.networks._resample_blocks import SelfAttention
from gencli.networks.lpips import Lpips
from gencli.networks.patch_discriminator import PatchDiscriminator
from gencli.networks.vqgan_decoder import VqganDecoder
from gencli.networks.vqgan_encoder import VqganEncoder

IMAGE, GRID = Field("image", (3, 256, 256), vocab=256, range=(-1.0, 1.0)), Field("latent", (256, 16, 16))
TINY = {"width": 8, "mults": (1, 2, 2), "blocks": 1, "attention": (4,), "z": 6}
SCORE = Field("score", (1,))


def count(module):
    return sum(p.numel() for p in module.parameters())


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("style", "parameters"), [("vqgan", 72_141_699), ("maskgit", 54_515_587)])
def test_with_1024_codes_the_networks_have_the_released_parameter_counts(style, parameters):
    with torch.device("meta"):
        encoder, decoder = (
            VqganEncoder.make({"style": style}, IMAGE, GRID),
            VqganDecoder.make({"style": style}, GRID, IMAGE),
        )
        assert count(encoder) + count(decoder) + 1024 * 256 == parameters
        assert encoder(torch.empty(2, 3, 256, 256)).shape == (2, 256, 16, 16)
        assert decoder(torch.empty(2, 256, 16, 16)).shape == (2, 3, 256, 256)
    looks = [sum(isinstance(m, SelfAttention) for m in net.modules()) for net in (encoder, decoder)]
    assert looks == ([3, 4] if style == "vqgan" else [0, 0])


@pytest.mark.parametrize("style", ["vqgan", "maskgit"])
def test_every_weight_and_every_pixel_counts(style):
    x, z = Field("image", (1, 16, 16)), Field("latent", (5, 4, 4))
    torch.manual_seed(0)
    encoder = VqganEncoder.make({**TINY, "style": style}, x, z).double()
    decoder = VqganDecoder.make({**TINY, "style": style}, z, x).double()
    image = normal(2, 1, 16, 16).requires_grad_()
    made = decoder(encoder(image))
    (made * normal(2, 1, 16, 16, seed=1)).sum().backward()
    # shifts that a norm of one group a channel takes away again have a gradient that is only rounding
    assert all(p.grad is not None for net in (encoder, decoder) for p in net.parameters())
    assert all(p.grad.abs().max() > 0 for net in (encoder, decoder) for p in net.parameters() if p.ndim > 1)
    assert image.grad.abs().min() > 0
    torch.testing.assert_close(decoder(encoder(image[1:])), made[1:])


def test_networks_that_do_not_fit_are_refused():
    with pytest.raises(GencliError, match="not divisible by the network's stride 4"):
        VqganEncoder.make(TINY, Field("image", (1, 18, 18)), GRID)
    with pytest.raises(GencliError, match="vqgan-decoder with 3 multiples cannot make"):
        VqganDecoder.make(TINY, Field("latent", (5, 8, 8)), Field("image", (1, 16, 16)))
    with pytest.raises(GencliError, match="with 3 layers needs sides of 24 or more, the images are 16×16"):
        PatchDiscriminator.make({}, Field("image", (1, 16, 16)), SCORE)


# ---------------------------------------------------------------------------------------------------------- discriminator


def test_the_discriminator_has_the_released_count_and_a_score_sees_70_by_70_pixels():
    with torch.device("meta"):
        assert count(PatchDiscriminator.make({}, IMAGE, SCORE)) == 2_765_633
    net = PatchDiscriminator.make({"width": 4, "norm": "none"}, Field("image", (1, 128, 128)), SCORE).double()
    for p in net.parameters():
        p.data = p.data.abs()  # nothing cancels
    x = torch.ones(1, 1, 128, 128, dtype=torch.float64, requires_grad=True)
    scores = net(x)
    assert scores.shape == (1, 1, 14, 14)
    scores[0, 0, 7, 7].backward()
    rows = x.grad[0, 0].sum(1).nonzero().flatten()
    assert len(rows) == 70 and int(rows[-1] - rows[0]) == 69


@pytest.mark.parametrize(("norm", "coupled"), [("batch", True), ("group", False), ("none", False)])
def test_the_discriminator_keeps_no_statistics_and_couples_items_by_batch_norm_only(norm, coupled):
    torch.manual_seed(0)
    net = PatchDiscriminator.make({"width": 8, "layers": 2, "norm": norm}, Field("image", (1, 16, 16)), SCORE).double()
    x = normal(4, 1, 16, 16)
    assert torch.allclose(net(x)[:2], net(x[:2])) != coupled
    assert not [*net.buffers()] and torch.equal(net(x), net.eval()(x))


# ------------------------------------------------------------------------------------------------------------------ LPIPS


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A file as the released one, with random numbers; VGG-16 as torchvision lays it out, with the same."""
    layers, here = [], 3
    for wide in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0):
        layers += [nn.Conv2d(here, wide, 3, padding=1), nn.ReLU()] if wide else [nn.MaxPool2d(2, 2)]
        here = wide or here
    vgg, state = nn.Sequential(*layers), {}
    for i, (key, value) in enumerate(vgg.state_dict().items()):
        spread = (2 / value[0].numel()) ** 0.5 if value.ndim > 1 else 0.1
        value.copy_(torch.randn(value.shape, generator=torch.Generator().manual_seed(i)) * spread)
        state[f"net.slice1.{key}"] = value.clone()
    for i, width in enumerate((64, 128, 256, 512, 512)):
        state[f"lin{i}.model.1.weight"] = torch.rand(1, width, 1, 1, generator=torch.Generator().manual_seed(i))
    path = tmp_path_factory.mktemp("lpips") / "vgg.safetensors"
    save_file(state, path)
    return path, vgg, state


@torch.no_grad()
def test_lpips_is_what_vgg_16_makes_of_it(released):
    path, vgg, state = released
    net = Lpips.read(path)
    assert count(net) == 14_714_688 + 1_472
    a, b = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in (1, 2))
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    ha, hb, expected, taps = (*((x - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for x in (a, b)), 0, [3, 8, 15, 22, 29])
    for i, layer in enumerate(vgg):
        ha, hb = layer(ha.clone()), layer(hb.clone())
        if i in taps:
            apart = (F.normalize(ha, dim=1) - F.normalize(hb, dim=1)) ** 2
            mixed = F.conv2d(apart, state[f"lin{taps.index(i)}.model.1.weight"])
            expected = expected + mixed.mean((1, 2, 3))
    torch.testing.assert_close(net(a, b), expected)
    torch.testing.assert_close(net(a, a), torch.zeros(2))
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(net(grey, grey.flip(3)), net(*(x.expand(-1, 3, -1, -1) for x in (grey, grey.flip(3)))))


def test_a_file_without_these_tensors_is_refused(released, tmp_path):
    state = {key: value for key, value in released[2].items() if "lin3" not in key}
    save_file(state, tmp_path / "lame.safetensors")
    with pytest.raises(GencliError, match=r"lame.safetensors holds no LPIPS of VGG-16: 1 of 31 .* first 'weights.3'"):
        Lpips.read(tmp_path / "lame.safetensors")
    with pytest.raises(GencliError, match=r"absent.safetensors is missing"):
        Lpips.read(tmp_path / "absent.safetensors")
