"""Fashion-MNIST, MNIST, CIFAR-10: read where they are, fetched with a digest, or one clear line."""

import gzip
import hashlib
import io
import struct
import tarfile
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch

from gencli.data import _download, open_data
from gencli.data._idx import read_idx
from gencli.data.cifar10 import Cifar10
from gencli.data.fashion_mnist import FashionMnist
from gencli.data.mnist import Mnist
from gencli.errors import GencliError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    return struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def tiny_mnist(folder, n=20, seed=0):
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for file, shape in zip(Mnist.files, [(n, 28, 28), (n,), (n // 2, 28, 28), (n // 2,)], strict=True):
        made[file.name] = rng.integers(0, 256 if len(shape) == 3 else 10, shape, dtype=np.uint8)
        (folder / file.name).write_bytes(gzip.compress(idx(made[file.name])))
    return made


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_read_from_debians_folder_without_a_socket():
    data = open_data("fashion-mnist")
    train, test = data.split("train"), data.split("test")
    assert train.x.shape == (60000, 1, 28, 28) and test.x.shape == (10000, 1, 28, 28)
    assert train.cond["label"].bincount().tolist() == [6000] * 10
    assert abs(train.x.mean() - 72.94) < 0.01  # the published mean, 0.2860 of 255
    assert data.spec.cond["label"].names[int(train.cond["label"][0])] == "ankle-boot"
    assert train.batch(torch.tensor([5, 3]))["x"].shape == (2, 1, 28, 28)


def test_mnist_is_read_from_the_cache_item_for_item():
    data = open_data("mnist")
    made = tiny_mnist(_download.cache_folder("mnist"))
    assert np.array_equal(data.split("train").x[:, 0], made["train-images-idx3-ubyte.gz"])
    assert np.array_equal(data.split("test").cond["label"].numpy(), made["t10k-labels-idx1-ubyte.gz"])
    assert data.spec.x.shape == (1, 28, 28) and data.spec.cond["label"].vocab == 10
    assert data.name == "mnist" and len(data.split("train").ids) == 20


def test_a_size_resizes_and_unconditional_leaves_the_labels_out():
    tiny_mnist(_download.cache_folder("mnist"))
    data = open_data("mnist", {"image_size": 14, "unconditional": True})
    assert data.spec.x.shape == (1, 14, 14) == data.split("train").x.shape[1:]
    assert not data.spec.cond and not data.split("train").cond
    whole = open_data("mnist").split("train").x
    assert abs(float(data.split("train").x.mean()) - float(whole.mean())) < 2  # antialiased: means survive


def test_offline_the_line_names_the_file_where_it_looked_and_the_next_step(monkeypatch):
    monkeypatch.setattr(FashionMnist, "folders", (Path("/nowhere/fashion"),))
    with pytest.raises(GencliError) as caught:
        open_data("fashion-mnist").split("train")
    error = caught.value
    assert "train-images-idx3-ubyte.gz" in error.message and "/nowhere/fashion" in error.message
    assert str(_download.cache_folder("fashion-mnist")) in error.message and "\n" not in error.message
    assert "apt install dataset-fashion-mnist" in error.hint and "{" not in error.hint


class Answer(io.BytesIO):
    def __init__(self, data):
        super().__init__(data)
        self.headers = {"Content-Length": str(len(data))}


def test_a_download_is_verified_renamed_and_told_about(tmp_path, monkeypatch):
    data = b"x" * 600_000
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(data))
    told = []
    file = _download.Remote("a.bin", "https://example.org/a.bin", hashlib.md5(data).hexdigest())
    found = _download.obtain("set", [file], [], "", lambda *args: told.append(args))
    assert found["a.bin"].read_bytes() == data and found["a.bin"].parent == _download.cache_folder("set")
    assert told[-1] == ("downloading a.bin", 600_000, 600_000) and len(told) > 1
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: pytest.fail("it is here already"))
    assert _download.obtain("set", [file], [], "", None) == found


def test_a_download_with_another_digest_leaves_nothing(monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Answer(b"tampered"))
    file = _download.Remote("a.bin", "https://example.org/a.bin", "0" * 32)
    with pytest.raises(GencliError, match=f"md5 {hashlib.md5(b'tampered').hexdigest()}, published is {'0' * 32}"):
        _download.obtain("set", [file], [], "", None)
    assert not list(_download.cache_folder("set").iterdir())


def test_a_connection_lost_on_the_way_is_the_networks_fault_not_the_disks(monkeypatch):
    class Lost(Answer):
        def read(self, *_):
            raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Lost(b""))
    file = _download.Remote("a.bin", "https://example.org/a.bin", "0" * 32)
    with pytest.raises(GencliError, match=r"lacks a\.bin.*reset by peer"):
        _download.obtain("set", [file], [], "", None)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x05abc", mtime=0), "3 bytes of items, its header says 5"),
        (gzip.compress(b"hello", mtime=0), "not an IDX file"),
        (gzip.compress(b"x" * 1000, mtime=0)[:40], "damaged"),
        (b"", "not an IDX file"),
    ],
    ids=["cut short", "no header", "no gzip", "empty"],
)
def test_a_damaged_idx_file_is_named(tmp_path, raw, words):
    path = tmp_path / "a.gz"
    path.write_bytes(raw)
    with pytest.raises(GencliError, match=words) as caught:
        read_idx(path)
    assert str(path) in caught.value.message


def test_an_idx_file_may_be_plain(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    (tmp_path / "a").write_bytes(idx(array))
    assert np.array_equal(read_idx(tmp_path / "a"), array)


def tiny_cifar(path, skip=(), cut=0):
    rng = np.random.default_rng(1)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {}
    with tarfile.open(path, "w:gz") as archive:
        for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
            labels = rng.integers(0, 10, 4, dtype=np.uint8)
            images = rng.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
            made[name] = labels, images
            raw = b"".join(bytes([k]) + image.tobytes() for k, image in zip(labels, images, strict=True))
            raw = raw[: len(raw) - cut]
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(raw)
            if name not in skip:
                archive.addfile(info, io.BytesIO(raw))
    return made


def test_cifar10_is_read_from_its_binary_archive():
    made = tiny_cifar(_download.cache_folder("cifar10") / "cifar-10-binary.tar.gz")
    data = open_data("cifar10")
    train = data.split("train")
    assert train.x.shape == (20, 3, 32, 32) and data.split("test").x.shape == (4, 3, 32, 32)
    assert np.array_equal(train.x[4:8], made["data_batch_2.bin"][1])
    assert train.cond["label"][4:8].tolist() == made["data_batch_2.bin"][0].tolist()
    assert data.spec.x.shape == (3, 32, 32) and data.spec.cond["label"].names[3] == "cat"
    assert open_data("cifar10", {"image_size": 64}).split("test").x.shape == (4, 3, 64, 64)


@pytest.mark.parametrize("how", [{"skip": ("test_batch.bin",)}, {"cut": 5}])
def test_a_damaged_cifar10_archive_is_named(how):
    path = _download.cache_folder("cifar10") / Cifar10.file.name
    tiny_cifar(path, **how)
    with pytest.raises(GencliError, match="is damaged"):
        open_data("cifar10").split("train")
