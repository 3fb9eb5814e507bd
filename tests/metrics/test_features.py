"""The feature protocols, the bundled weights, the cache of references, and what the distance notices."""

import gzip
import hashlib
import json
from functools import cache
from itertools import pairwise
from pathlib import Path

import damage
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gencli.data._base import Data, Split
from gencli.data.digits import Digits
from gencli.errors import GencliError
from gencli.metrics import _features, _inception
from gencli.metrics._features import BUNDLED, cache_path, extractor, random_network, reference
from gencli.metrics.fid import Fid, distance

FASHION = Path("/usr/share/datasets/fashion-mnist")


@cache
def digits():
    part = Digits.make().split("train")
    return shuffled(torch.from_numpy(part.x), part.cond["label"])


@cache
def fashion():
    if not FASHION.exists():
        pytest.skip("Debian's dataset-fashion-mnist is not installed")
    x, y = (
        np.frombuffer(gzip.decompress((FASHION / f"t10k-{name}-idx{k}-ubyte.gz").read_bytes()), np.uint8, offset=start)
        for name, k, start in (("images", 3, 16), ("labels", 1, 8))
    )
    return shuffled(torch.from_numpy(x.reshape(-1, 1, 28, 28).copy()), torch.from_numpy(y.copy()))


def shuffled(x, y, most=1600):
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))[:most]
    return x[order], y[order]


def features(x, by=None):
    return (by or extractor()).extract(x.split(256)).x


READ = {"digits": digits, "fashion": fashion}


@cache
def halves(name):
    """Features of the first half, the second half with its labels, and the distance between the halves."""
    x, y = READ[name]()
    half = len(x) // 2
    first = features(x[:half])
    return first, x[half:], y[half:], distance(first, features(x[half:]))


@pytest.mark.parametrize("name", list(READ))
@pytest.mark.parametrize("how", ["noise", "blur", "jpeg", "dropped"])
def test_the_distance_rises_with_damage_from_twice_the_floor(name, how):
    first, x, y, floor = halves(name)
    levels = {
        "noise": (damage.noise, damage.NOISE),
        "blur": (damage.blur, damage.BLUR),
        "jpeg": (damage.jpeg, damage.JPEG),
        "dropped": (lambda x, level: damage.without_classes(x, y, level), damage.DROPPED),
    }
    spoil, strengths = levels[how]
    found = [distance(first, features(spoil(x, level))) for level in strengths]
    assert found[0] > 2 * floor, f"{found} against {floor}"
    assert all(low < high for low, high in pairwise(found)), found


@pytest.mark.parametrize(("name", "bar"), [("digits", 0.97), ("fashion", 0.90)])
def test_the_bundled_network_classifies_held_out_images(name, bar):
    if name == "digits":
        part = Digits.make().split("test")
        x, y = torch.from_numpy(part.x), part.cond["label"]
    else:
        x, y = fashion()
        y = y.long() + 10
    net = extractor().net
    with torch.no_grad():
        found = torch.cat([net.class_logits(p.float() / 255).argmax(1) for p in x.split(400)])
    assert float((found == y).float().mean()) >= bar


def test_the_bundled_weights_are_small_and_come_with_their_facts():
    assert BUNDLED.stat().st_size <= 1.5e6
    facts = json.loads(BUNDLED.with_suffix(".json").read_text(encoding="utf-8"))
    assert facts["test_accuracy"]["digits"] >= 0.97 and facts["test_accuracy"]["fashion-mnist"] >= 0.90
    assert "benchmarks.train_features" in facts["command"] and len(facts["classes"]) == 20


@pytest.mark.parametrize("name", ["gencli", "random"])
def test_features_do_not_depend_on_the_batch_size(name):
    x, by = digits()[0][:400], extractor(name)
    one = np.concatenate([by.extract([image[None]]).x for image in x[:200]])
    other = by.extract(x[200:].split(64)).x
    many = by.extract(x[:200].split(64)).x
    assert abs(distance(one, other) - distance(many, other)) < 1e-3
    assert np.abs(one - many).max() < 1e-4


def test_each_protocol_has_its_own_name_and_fingerprint():
    made = [extractor(name) for name in ("gencli", "random", "pixels")]
    assert [by.name for by in made] == ["gencli-features-v1", "random-v1", "pixels"]
    assert len({by.fingerprint for by in made}) == 3
    assert all("not comparable with Inception FID" in by.note for by in made)
    assert extractor("random").fingerprint == made[1].fingerprint


def test_values_carry_the_protocol_s_name():
    x = digits()[0]
    by = extractor("pixels")
    value = Fid.make()(by.extract([x[:60, :, ::4, ::4]]), by.extract([x[60:120, :, ::4, ::4]]))
    assert value.name == "fid[pixels]" and "not comparable" in value.note


def test_pixels_of_large_images_are_refused_and_unknown_names_get_a_suggestion():
    with pytest.raises(GencliError, match="12288 dimensions"):
        extractor("pixels").features(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(GencliError, match="unknown features 'pixel'") as error:
        extractor("pixel")
    assert "pixels" in error.value.hint


# ------------------------------------------------------------------------------------------------------- weights from a path


def write_weights(path, drop=None, **header):
    state = {key: value for key, value in random_network(7).state_dict().items() if key != drop}
    save_file(state, path, metadata=header)


def test_a_file_or_folder_of_weights_serves_as_features(tmp_path):
    write_weights(tmp_path / "mine.safetensors", network="feature-net")
    by_file, by_folder = extractor(str(tmp_path / "mine.safetensors")), extractor(str(tmp_path))
    assert by_file.name.startswith("mine-") and by_file.fingerprint == by_folder.fingerprint
    assert by_file.fingerprint != extractor("random").fingerprint
    x = digits()[0][:5]
    with torch.no_grad():
        assert torch.equal(by_file.features(x), random_network(7).eval().features(x / 255))


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    write_weights(tmp_path / "anonymous.safetensors")
    write_weights(tmp_path / "short.safetensors", drop="neck.bias", network="feature-net")
    write_weights(tmp_path / "other.safetensors", network="unet")
    (tmp_path / "torn.safetensors").write_bytes(BUNDLED.read_bytes()[:5000])
    for name, reason in (("anonymous", "which network"), ("short", "1 tensors missing"), ("torn", "not a readable")):
        with pytest.raises(GencliError, match=f"{name}.*{reason}"):
            extractor(str(tmp_path / f"{name}.safetensors"))
    with pytest.raises(GencliError, match="gives no features"):
        extractor(str(tmp_path / "other.safetensors"))


def test_loading_bundled_weights_executes_no_code(monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("unpickling")

    monkeypatch.setattr("pickle.load", forbidden)
    monkeypatch.setattr("pickle.Unpickler", forbidden)
    monkeypatch.setattr(torch, "load", forbidden)
    assert extractor().name == "gencli-features-v1"
    assert all(torch.isfinite(value).all() for value in load_file(BUNDLED).values())


# ---------------------------------------------------------------------------------------------------------------- references


class Folder(Data):
    """Random images, `changed` in one pixel."""

    def __init__(self, changed=False):
        super().__init__(None)
        self.changed = changed

    spec = None

    def load(self):
        x = np.random.default_rng(0).integers(0, 256, (90, 1, 8, 8)).astype(np.uint8)
        x[0, 0, 0, 0] ^= int(self.changed)
        return {"train": Split(x[:60]), "test": Split(x[60:])}


def test_references_are_extracted_once_over_the_whole_split_in_order(monkeypatch):
    by, data = extractor(), Folder()
    made = reference(data, "train", by, batch_size=16)
    assert len(made) == 60 and made.x.dtype == np.float64
    assert np.abs(made.x - features(torch.from_numpy(data.split("train").x))).max() < 1e-4
    monkeypatch.setattr(_features.Extractor, "extract", lambda *a: pytest.fail("extracted twice"))
    again = reference(Folder(), "train", extractor())
    assert np.array_equal(again.x, made.x) and again.fingerprint == by.fingerprint


def test_the_cache_key_changes_with_data_split_extractor_and_n():
    by, data = extractor(), Folder()
    keys = {
        cache_path(data, "train", by, 60),
        cache_path(data, "test", by, 60),
        cache_path(data, "train", by, 30),
        cache_path(data, "train", extractor("pixels"), 60),
        cache_path(data, "train", _features.Network(random_network(7), by.name), 60),
        cache_path(Folder(changed=True), "train", by, 60),
    }
    assert len(keys) == 6 and cache_path(Folder(), "train", by, 60) in keys


def test_a_smaller_reference_is_a_fixed_subset():
    by, data = extractor("pixels"), Folder()
    part, whole = reference(data, "train", by, 20), reference(data, "train", by)
    rows = [int(np.flatnonzero((whole.x == row).all(1))[0]) for row in part.x]
    assert len(set(rows)) == 20 and rows == sorted(rows) and rows != list(range(20))
    assert len(reference(data, "test", by, 1000)) == 30


def test_a_damaged_cache_file_is_refused_by_name():
    by, data = extractor("pixels"), Folder()
    reference(data, "test", by)
    path = cache_path(data, "test", by, 30)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(GencliError, match=path.name):
        reference(data, "test", by)


# ----------------------------------------------------------------------------------------------------------------- inception


class Published(torch.nn.Module):
    """Stands in for the published file: `layers` from (N, 3, 299, 299) to (N, 2048, 1, 1)."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.AvgPool2d(23), torch.nn.Conv2d(3, 2048, 13))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_features_are_those_of_clean_fid(tmp_path, channels):
    path = tmp_path / _inception.FILE
    torch.jit.script(Published()).save(str(path))
    ours = _inception.Inception(path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    from cleanfid.inception_torchscript import InceptionV3W
    from cleanfid.resize import build_resizer

    images = torch.randint(256, (3, channels, 20, 28), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    resized = [build_resizer("clean")(x.expand(3, 20, 28).permute(1, 2, 0).numpy()) for x in images]
    with torch.no_grad():
        theirs = InceptionV3W(str(tmp_path), download=False)(torch.tensor(np.stack(resized)).permute(0, 3, 1, 2))
        found = ours.features(images)
    assert found.shape == (3, 2048) and torch.allclose(found, theirs, atol=1e-5)
    assert ours.name == "inception-clean"


def test_without_weights_inception_says_file_hash_and_folder():
    with pytest.raises(GencliError) as error:
        extractor("inception")
    text = error.value.message + error.value.hint
    assert _inception.FILE in text and _inception.SHA256 in text and "home" in text and "weights" in text


def test_a_file_with_another_hash_is_never_loaded(tmp_path):
    (tmp_path / _inception.FILE).write_bytes(b"something else")
    with pytest.raises(GencliError, match=hashlib.sha256(b"something else").hexdigest()):
        extractor("inception", weights=tmp_path)


def test_no_socket_is_opened_unless_asked(monkeypatch):
    calls = []

    def refuse(url, path):
        calls.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr(_inception.urllib.request, "urlretrieve", refuse)
    with pytest.raises(GencliError):
        extractor("inception")
    assert not calls
    with pytest.raises(GencliError, match="no route to host"):
        extractor("inception", fetch=True)
    assert calls == [_inception.URL]
