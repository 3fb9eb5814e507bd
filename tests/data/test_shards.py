"""Shards hold what a folder of the same images holds; what is no image, or no shard, is named."""

import io
import json
import sys
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from gencli.data import _shards, open_data
from gencli.errors import GencliError

NAMES = ["zero", "one", "two"]
COUNT = 60


def picture(i):
    return Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8))


def encoded(i):
    made = io.BytesIO()
    picture(i).save(made, "png")
    return made.getvalue()


def as_folder(root):
    for i in range(COUNT):
        place = root / NAMES[i % 3]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{i:04d}.png").write_bytes(encoded(i))
    return root


def as_tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    return path


def as_shards(root, label=lambda i: ("cls", str(i % 3).encode()), stem="shard-{:03d}.tar"):
    for shard in range(4):
        rows = range(shard * 15, shard * 15 + 15)
        images = [(f"{i:04d}.png", encoded(i)) for i in rows]
        as_tar(root / stem.format(shard), sorted(images + [(f"{i:04d}.{label(i)[0]}", label(i)[1]) for i in rows]))
    return root


def rows_of(pyarrow, rows):
    image = [{"bytes": encoded(i), "path": f"{i}.png"} for i in rows]
    about = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    table = pyarrow.table({"image": image, "label": [i % 3 for i in rows]})
    return table.replace_schema_metadata({"huggingface": json.dumps(about)})


def as_parquet(root):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    root.mkdir(parents=True, exist_ok=True)
    parts = {
        "train-00000-of-00002": range(30),
        "train-00001-of-00002": range(30, 50),
        "test-00000-of-00001": range(50, 60),
    }
    for name, rows in parts.items():
        parquet.write_table(rows_of(pyarrow, rows), root / f"{name}.parquet", row_group_size=7)
    return root


def as_arrow(root):
    pyarrow = pytest.importorskip("pyarrow")
    for split, rows in {"train": range(50), "test": range(50, 60)}.items():
        (root / split).mkdir(parents=True)
        table = rows_of(pyarrow, rows)
        for name in ("data-00000-of-00001.arrow", "cache-0123.arrow"):  # the second is a result, not data
            with (
                pyarrow.OSFile(str(root / split / name), "wb") as file,
                pyarrow.ipc.new_stream(file, table.schema) as to,
            ):
                to.write_table(table)
        (root / split / "state.json").write_text("{}")
    return root


def held(path, **settings):
    """Pixels and class by what is in the pixels, of both splits together."""
    data = open_data(str(path), {"image_size": "8", **settings})
    found = {}
    for split in map(data.split, ("train", "test")):
        labels = split.cond["label"].tolist() if "label" in split.cond else [None] * len(split)
        for i, label in enumerate(labels):
            key = split.x[i].tobytes()
            assert key not in found
            found[key] = label
    return data, found


@pytest.mark.parametrize("make", [as_shards, as_parquet, as_arrow])
def test_shards_hold_the_images_and_classes_of_a_folder(make, tmp_path):
    _, expected = held(as_folder(tmp_path / "folder"))
    data, found = held(make(tmp_path / "shards"))
    classes = data.spec.cond["label"].names
    assert list(classes) == (["0", "1", "2"] if make is as_shards else sorted(NAMES))
    order = [classes.index(str(k) if make is as_shards else NAMES[k]) for k in range(3)]
    folder_order = {sorted(NAMES).index(name): order[k] for k, name in enumerate(NAMES)}
    assert len(found) == COUNT and found == {key: folder_order[label] for key, label in expected.items()}


@pytest.mark.parametrize("make", [as_parquet, as_arrow])
def test_shards_and_folders_named_like_splits_are_the_splits(make, tmp_path):
    data, _ = held(make(tmp_path / "shards"))
    assert (len(data.split("train")), len(data.split("test"))) == (50, 10)
    held_out = {data.split("test").x[i].tobytes() for i in range(10)}
    assert held_out == {
        torch.from_numpy(np.array(picture(i))).permute(2, 0, 1).numpy().tobytes() for i in range(50, 60)
    }


def test_json_says_classes_too_and_shards_without_any_have_none(tmp_path):
    data, found = held(as_shards(tmp_path / "json", lambda i: ("json", json.dumps({"label": NAMES[i % 3]}).encode())))
    assert list(data.spec.cond["label"].names) == sorted(NAMES) and len(found) == COUNT
    data, found = held(as_shards(tmp_path / "text", lambda i: ("txt", b"a caption")))
    assert not data.spec.cond and len(found) == COUNT and any("60 .txt" in note for note in data.notes)


def test_one_tar_without_classes_is_a_packed_folder(tmp_path):
    folder = as_folder(tmp_path / "photos")
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(folder, arcname="photos")
    (one, first), (other, second) = held(folder), held(tmp_path / "photos.tar")
    assert first == second and one.hash == other.hash and other.name == "photos"


def test_moved_or_repacked_shards_are_the_same_data(tmp_path):
    first = open_data(str(as_shards(tmp_path / "a")), {"image_size": "8"}).hash
    assert open_data(str(as_shards(tmp_path / "b")), {"image_size": "8"}).hash == first
    changed = as_shards(tmp_path / "c", lambda i: ("cls", str((i + 1) % 3).encode()))
    assert open_data(str(changed), {"image_size": "8"}).hash != first


def test_what_cannot_be_read_is_named_and_the_rest_is_taken(tmp_path):
    good = [(f"{i}.png", encoded(i)) for i in range(9)]
    shard = as_tar(tmp_path / "d" / "s-0.tar", [*good, ("../out.png", encoded(9)), ("b.png", b"no")])
    with tarfile.open(shard, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    data, found = held(tmp_path / "d")
    assert len(found) == 9
    why = {name.rpartition(":")[2]: reason for name, reason in data.unreadable.items()}
    assert why["out.png"] == "its name leads out of the archive"
    assert "link" in why["link.png"] and "not an image" in why["b.png"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.tar", b"nothing" * 200, "no plain tar"),
        ("a.tar", b"", "no images|no plain tar"),
        ("a.tar.gz", b"\x1f\x8b", "compressed"),
        ("a.parquet", b"PAR1 and no more", "damaged"),
        ("a.arrow", b"\xff" * 64, "damaged"),
    ],
)
def test_a_damaged_shard_is_one_clear_line(name, content, words, tmp_path):
    if name.endswith(("parquet", "arrow")):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(GencliError, match=words):
        held(tmp_path / name)


def test_columns_without_images_and_a_missing_library_are_named(tmp_path, monkeypatch):
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    parquet.write_table(pyarrow.table({"text": ["a"], "label": [0]}), tmp_path / "a.parquet")
    with pytest.raises(GencliError, match="no column of images: text, label"):
        held(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(GencliError, match="needs pyarrow"):
        held(tmp_path / "a.parquet")


def test_row_groups_are_read_once_in_order(tmp_path):
    pytest.importorskip("pyarrow")
    table = _shards._Parquet(as_parquet(tmp_path / "p") / "train-00000-of-00002.parquet")
    rows = [table.value("image", row)["path"] for row in range(30)]
    assert rows == [f"{i}.png" for i in range(30)]
    assert table._group.cache_info().misses == 5  # 30 rows in groups of 7


def test_a_run_trains_on_shards_and_a_resumed_one_is_the_same(zygote, tmp_path):
    shards = as_shards(tmp_path / "shards")

    def train(*flags):
        assert zygote.run(tmp_path, "train", "vae", *flags)[0] == 0

    fixed = [
        "--data",
        str(shards),
        "--image-size",
        "8",
        "--batch-size",
        "7",
        "--save-every",
        "3",
        "--out",
        str(tmp_path),
    ]
    fixed += ["--encoder.width", "16", "--decoder.width", "16"]
    train(*fixed, "--name", "whole", "--steps", "14")
    train(*fixed, "--name", "parts", "--steps", "9")  # in the midst of a shard and of an epoch
    train("--resume", str(tmp_path / "parts"), "--steps", "14")
    whole, parts = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts"))
    assert load(whole).keys() and all(torch.equal(load(parts)[key], value) for key, value in load(whole).items())
