"""LPIPS of reconstructions: as torchvision's AlexNet and the package `lpips` have it; published files only."""

import hashlib
import re
import warnings
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from test_reconstruction import coarse_run
from torch import nn
from torch.nn import functional as F

from gencli.core import Rng
from gencli.data.digits import Digits
from gencli.errors import GencliError
from gencli.metrics import _lpips
from gencli.metrics._torchvision import import_torchvision
from gencli.metrics.reconstruction import Reconstruction, lpips
from gencli.networks.lpips import ALEX

import_torchvision()
models = pytest.importorskip("torchvision.models")
WIDTHS = 64, 192, 384, 256, 256


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """AlexNet with random weights, five layers, and both in one file."""
    torch.manual_seed(0)
    net = nn.Sequential(OrderedDict(features=models.alexnet(weights=None).features)).eval()
    layers = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate(WIDTHS)}
    path = tmp_path_factory.mktemp("lpips") / "all.safetensors"
    save_file({**net.state_dict(), **layers}, path)
    return net, layers, path


def pair(channels=3, side=40):
    generator = torch.Generator().manual_seed(1)
    return (torch.randint(256, (3, channels, side, side), generator=generator).to(torch.uint8) for _ in range(2))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_it_is_what_torchvision_s_alexnet_makes_of_it(weights, channels):
    net, layers, path = weights
    found, sha256 = _lpips.read(path, "alex")
    a, b = pair(channels)
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    ha, hb = (((x / 255.0 * 2 - 1) - shift.view(3, 1, 1)) / scale.view(3, 1, 1) for x in (a, b))
    expected, taps = torch.zeros(3), [1, 4, 7, 9, 11]
    for i, layer in enumerate(net.features[:12]):
        ha, hb = layer(ha.clone()), layer(hb.clone())
        if i in taps:
            apart = (F.normalize(ha, dim=1) - F.normalize(hb, dim=1)) ** 2
            expected += F.conv2d(apart, layers[f"lin{taps.index(i)}.model.1.weight"]).mean((1, 2, 3))
    assert torch.allclose(lpips(found, a, b).float(), expected, rtol=1e-4)
    assert not lpips(found, a, a).any() and (expected > 0).all()
    assert sum(w.numel() for w in found.parameters()) == 2_469_696 + 1_152 and len(sha256) == 64


@torch.no_grad()
@pytest.mark.parametrize("network", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])
def test_the_package_lpips_computes_the_same(network, tmp_path):
    package = pytest.importorskip("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's about its own old arguments
        theirs = package.LPIPS(net=network, pnet_rand=True, verbose=False)
    path = tmp_path / "theirs.safetensors"
    save_file({key: value.clone() for key, value in theirs.state_dict().items() if not key.startswith("lins.")}, path)
    a, b = pair()
    expected = theirs(*(x / 255.0 * 2 - 1 for x in (a, b))).flatten()
    assert torch.allclose(lpips(_lpips.read(path, network)[0], a, b).float(), expected, rtol=1e-4)


def test_a_folder_holds_the_published_files_or_is_refused(weights, tmp_path, monkeypatch):
    net, layers, path = weights
    with pytest.raises(
        GencliError, match=r"no LPIPS .*alexnet-owt-7be5be79.pth \(.* and alex.pth \(sha256 df73285e35b2"
    ):
        _lpips.read(tmp_path, "alex")
    with pytest.raises(GencliError, match=r"no LPIPS weights in .*absent: vgg16-397923af.pth \(sha256 397923af"):
        _lpips.read(tmp_path / "absent", "vgg")
    torch.save(net.state_dict(), tmp_path / "alexnet-owt-7be5be79.pth")
    torch.save(layers, tmp_path / "alex.pth")
    with pytest.raises(GencliError, match="is not the published file"):
        _lpips.read(tmp_path, "alex")
    ours = tuple(
        file._replace(sha256=hashlib.sha256((tmp_path / file.name).read_bytes()).hexdigest())
        for file in _lpips.FILES["alex"]
    )
    monkeypatch.setitem(_lpips.FILES, "alex", ours)
    found, told = _lpips.read(tmp_path, "alex")
    same = _lpips.read(path, "alex")[0].state_dict()
    assert all(torch.equal(value, same[key]) for key, value in found.state_dict().items())
    assert told == " + ".join(file.sha256 for file in ours)


def test_reconstruction_has_it_where_weights_are_given(weights):
    data = Digits.make({"unconditional": True, "image_size": 32})
    run = coarse_run(data)
    made = {
        value.name: value
        for value in Reconstruction.make({"lpips": str(weights[2])})(
            run, data.split("test"), Rng.batch("t", total=1), n=6
        )
    }
    found = made["lpips[alex]"]
    assert found.better == "lower" and found.interval[0] < found.value < found.interval[1] and found.n == 6
    assert re.fullmatch("[0-9a-f]{64}", found.facts["weights"])
    x = data.split("test").batch(torch.arange(6) * len(data.split("test")) // 6)["x"]
    again = ((x / 127.5 - 1 + 1) / 2 * 7).round() / 7 * 255
    by_hand = lpips(_lpips.read(weights[2], "alex")[0], x, again.round().to(torch.uint8)).mean()
    assert found.value == pytest.approx(float(by_hand), rel=1e-6)


def test_images_that_alexnet_cannot_see_are_refused(weights):
    net = _lpips.read(weights[2], "alex")[0]
    with pytest.raises(GencliError, match=r"LPIPS by AlexNet takes .* 31 pixels or more, these are \(1, 16, 16\)"):
        lpips(net, *pair(1, 16))
    assert len(lpips(net, *pair(1, ALEX.least))) == 3
