"""Each FID convention's preprocessing against its own implementation or an independent formula, and its rules."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_features import Published

from gencli.errors import GencliError
from gencli.metrics import _inception
from gencli.metrics._protocols import NEAREST, PROTOCOLS, TRUNCATED, named

SIZES = [(28, 20), (32, 32), (64, 48), (299, 299), (400, 310)]


def images(height: int, width: int, channels: int = 3, n: int = 2) -> torch.Tensor:
    rng = torch.Generator().manual_seed(height)
    noise = torch.randint(256, (n, channels, height, width), generator=rng).to(torch.uint8)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    noise[0, 0] = ((x // 3 + y // 3) % 2 * 255).to(torch.uint8)  # a checkerboard
    noise[0, -1] = ((x - width / 2) ** 2 + (y - height / 2) ** 2 < (width / 3) ** 2) * 255  # a circle
    return noise


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "theirs"), [("clean", "clean"), ("legacy-pytorch", "legacy_pytorch")])
def test_resized_arrays_are_those_of_clean_fid(name: str, theirs: str, size: tuple[int, int]) -> None:
    from gencli.metrics._torchvision import import_torchvision

    import_torchvision()
    from cleanfid.resize import build_resizer

    x = images(*size)
    resize = build_resizer(theirs)
    expected = np.stack([resize(image.permute(1, 2, 0).numpy()).transpose(2, 0, 1) for image in x])
    assert np.abs(PROTOCOLS[name].resize(x).numpy() - expected).max() <= 1e-6


def weights(size: int) -> np.ndarray:
    """`(299, size)`: a row an output pixel, its place in float32 as TensorFlow's kernel has it."""
    made = np.zeros((299, size))
    for i in range(299):
        at = np.float32(i) * np.float32(size / 299)
        low = int(at)
        share = float(at - np.float32(low))
        made[i, low] += 1 - share
        made[i, min(low + 1, size - 1)] += share
    return made


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["legacy-tf", "adm", "edm"])
def test_tensorflow_s_resize_is_a_product_of_two_matrices(name: str, size: tuple[int, int]) -> None:
    x = images(*size)
    expected = (weights(size[0]) @ x.double().numpy() @ weights(size[1]).T - 128) / 128
    assert np.abs(PROTOCOLS[name].prepare(x).numpy() - expected).max() <= 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_edm_s_detector_does_the_same_by_a_shifted_affine_grid(size: tuple[int, int]) -> None:
    """In float64; places in float32 are off by up to 1e-5 pixels, between two pixels of which a value may run over 255."""
    x = images(*size)
    theta = torch.eye(2, 3, dtype=torch.float64)
    theta[0, 2], theta[1, 2] = 1 / size[1] - 1 / 299, 1 / size[0] - 1 / 299
    grid = F.affine_grid(theta[None].expand(len(x), -1, -1), [len(x), 3, 299, 299], align_corners=False)
    expected = F.grid_sample(x.double(), grid, "bilinear", "border", align_corners=False)
    found = PROTOCOLS["edm"].prepare(x).double()
    assert float((found - (expected - 128) / 128).abs().max()) < 1e-4


def test_tensorflow_s_resize_by_hand() -> None:
    x = torch.tensor([[0, 100, 200, 60]], dtype=torch.uint8)[None, None].expand(1, 1, 2, 4)
    row = PROTOCOLS["legacy-tf"].resize(x)[0, 0, 0]
    for i in (0, 1, 50, 74, 75, 150, 298):
        at = i * 4 / 299
        low = int(at)
        values = [0, 100, 200, 60, 60]
        assert float(row[i]) == pytest.approx(values[low] + (at - low) * (values[low + 1] - values[low]), abs=1e-4)
    assert float(row[298]) == 60.0, "past the last pixel nothing is invented"


def test_the_three_resizes_differ_on_a_pattern() -> None:
    x = images(400, 400)
    made = [PROTOCOLS[name].resize(x) for name in ("clean", "legacy-tf", "legacy-pytorch")]
    gaps = [float((a - b).abs().mean()) for a, b in ((made[0], made[1]), (made[1], made[2]), (made[0], made[2]))]
    assert min(gaps) > 5, "an aliased resize shows on a checkerboard"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_rest_goes_through_a_fixed_network(name: str, tmp_path: Path) -> None:
    path = tmp_path / _inception.FILE
    torch.manual_seed(3)
    torch.jit.script(Published()).save(str(path))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    by = _inception.Inception(path, sha256=sha256, protocol=named(name))
    x = images(24, 30)
    scaled = PROTOCOLS[name].resize(x).double()
    scaled = 2 * (scaled / 255) - 1 if name == "legacy-pytorch" else (scaled - 128) / 128
    net = torch.jit.load(str(path)).layers.double()
    with torch.no_grad():
        expected = net(scaled).flatten(1)
    assert np.abs(by.rows(x) - expected.numpy()).max() < 1e-5
    grey = images(24, 30, 1)
    assert np.allclose(by.rows(grey), by.rows(grey.expand(-1, 3, -1, -1)), atol=1e-6)
    assert (
        by.name == f"inception-{name}" and by.sha256 == sha256 and by.facts()["preprocessing"] == PROTOCOLS[name].words
    )
    with pytest.raises(GencliError, match="have 2"):
        by.features(images(24, 30, 2))


def test_fingerprints_differ_and_the_old_one_stands(tmp_path: Path) -> None:
    path = tmp_path / _inception.FILE
    torch.jit.script(Published()).save(str(path))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    made = {name: _inception.Inception(path, sha256=sha256, protocol=named(name)).fingerprint for name in PROTOCOLS}
    assert len(set(made.values())) == 5
    assert made["clean"] == hashlib.sha256(f"clean-fid {sha256}".encode()).hexdigest()[:16]


def test_leaving_a_rule_is_named() -> None:
    assert named("edm").deviations(50_000, "train", NEAREST) == []
    assert named("edm").deviations(2048, "test") == ["N 2,048, not 50,000", "test split, not train"]
    assert named("adm").deviations(50_000, "train", NEAREST) == [f"rounded {NEAREST}, not {TRUNCATED}"]
    assert named("clean").deviations(10, "test", TRUNCATED) == []
    with pytest.raises(GencliError, match="unknown protocol 'emd'") as error:
        named("emd")
    assert "edm" in error.value.hint
