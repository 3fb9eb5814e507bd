"""Samples from folders, zips and arrays: the same pixels give the same features; what would mislead is said or refused."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.errors import GencliError
from gencli.evaluation import sources
from gencli.evaluation.references import Reference, reference_codecs
from gencli.evaluation.sources import ARRAY, Samples
from gencli.metrics._features import extractor


def pictures(n: int = 6, channels: int = 3, height: int = 8, width: int = 12, seed: int = 0) -> np.ndarray:
    """`(N, H, W, C)`."""
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, channels), dtype=np.uint8)


def write(folder: Path, arrays: np.ndarray, suffix: str = "png", **options: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for i, array in enumerate(arrays):
        Image.fromarray(array.squeeze()).save(folder / f"{i:05d}.{suffix}", **options)
    return folder


def drawn(folder: Path, seeds: range, **facts: Any) -> Path:
    """A folder as `gencli sample` leaves it."""
    write(folder, pictures(len(seeds), seed=seeds[0]))
    Image.new("L", (30, 30)).save(folder / "grid.png")
    items = [{"file": f"{i:05d}.png", "seed": seed} for i, seed in enumerate(seeds)]
    document = {"schema": 1, "run": "r", "weights": "abc", "sampler": {"name": "ddim"}, "seconds": 0.1, **facts}
    (folder / "samples.json").write_text(json.dumps({**document, "rounding": "down", "items": items}))
    return folder


def read(*paths: Path) -> torch.Tensor:
    return torch.cat(list(Samples(paths).items()))


def npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_a_folder_a_zip_and_an_array_hold_the_same_pixels(tmp_path: Path, channels: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(sources, "BATCH", 4)  # several batches, the last one short
    arrays = pictures(11, channels)
    folder = write(tmp_path / "folder", arrays)
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"inner/{path.name}")
    expected = torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy())
    hashes = set()
    for place in (folder, tmp_path / "some.zip", npz(tmp_path / "a.npz", arr_0=arrays, arr_1=np.arange(11))):
        assert torch.equal(read(place), expected), place
        samples = Samples([place])
        assert samples.count() == 11 and [len(batch) for batch in samples.items()] == [4, 4, 3]
        assert samples.receipt()["images"] == 11 and samples.receipt()["rounding"] == "unknown"
        hashes.add(samples.receipt()["content"])
    arrays[10, 0, 0, 0] ^= 1
    other = Samples([npz(tmp_path / "b.npz", arr_0=arrays)])
    assert len(hashes) == 1 and list(other.items()) and other.receipt()["content"] not in hashes


def test_a_compressed_array_is_read_too(tmp_path: Path) -> None:
    arrays = pictures(5)
    np.savez_compressed(tmp_path / "c.npz", arr_0=arrays)
    assert torch.equal(read(tmp_path / "c.npz"), torch.from_numpy(arrays.transpose(0, 3, 1, 2).copy()))


def test_arrays_that_are_no_images_are_refused_by_name(tmp_path: Path) -> None:
    arrays = pictures()
    bad = {
        "floats.npz": ({"arr_0": arrays / 255}, "float64"),
        "first.npz": ({"arr_0": arrays.transpose(0, 3, 1, 2)}, "channels last"),
        "named.npz": ({"x": arrays}, "no array 'arr_0'"),
        "objects.npz": ({"arr_0": np.array([{"a": 1}], dtype=object)}, "object"),
        "empty.npz": ({"arr_0": arrays[:0]}, "no images"),
        "fortran.npz": ({"arr_0": np.asfortranarray(arrays)}, "uint8"),
    }
    for name, (content, words) in bad.items():
        np.savez(tmp_path / name, **content)
        with pytest.raises(GencliError) as error:
            read(tmp_path / name)
        assert words in error.value.message + error.value.hint and name in error.value.message, name
    (tmp_path / "torn.npz").write_bytes((tmp_path / "floats.npz").read_bytes()[:300])
    with pytest.raises(GencliError, match=r"torn.npz is damaged"):
        read(tmp_path / "torn.npz")


def test_an_array_whose_header_promises_more_is_refused(tmp_path: Path) -> None:
    arrays = pictures(3)
    np.save(tmp_path / "a.npy", arrays)
    whole = (tmp_path / "a.npy").read_bytes()
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("arr_0.npy", whole[:-100])
    with pytest.raises(GencliError, match="ends within image 2"):
        read(tmp_path / "short.npz")


def test_an_unreadable_image_and_more_than_8_bits_are_refused_by_name(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", pictures(2))
    (folder / "00001.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(GencliError, match=r"00001.png in .* cannot be read"):
        read(folder)
    Image.fromarray(np.full((8, 12), 40_000, np.uint16)).save(folder / "00001.png")
    with pytest.raises(GencliError, match="more than 8 bits"):
        read(folder)
    with pytest.raises(GencliError, match="no images"):
        read(write(tmp_path / "nothing", pictures(0)))


# -------------------------------------------------------------------------------------------------------------------- notes


def notes(place: Path, reference: str = "PNG", like: tuple[int, ...] = (3, 8, 12)) -> str:
    samples = Samples([place])
    list(samples.items())
    return "\n".join(samples.notes(Counter({reference: 5}), like))


def test_jpeg_against_png_is_said_and_png_against_arrays_is_not(tmp_path: Path) -> None:
    lossless = write(tmp_path / "png", pictures())
    lossy = write(tmp_path / "jpg", pictures(), "jpg", quality=75)
    assert "JPEG, the reference is PNG" in notes(lossy)
    assert "PNG, the reference is JPEG" in notes(lossless, "JPEG")
    assert notes(lossless) == notes(lossless, ARRAY) == notes(lossy, "JPEG") == ""


def test_jpeg_moves_the_distance_by_more_than_the_note_would_be_worth_without(tmp_path: Path) -> None:
    """What the note is about: the same images, once through JPEG."""
    from gencli.data.digits import Digits
    from gencli.metrics.fid import distance

    x = np.repeat(Digits.make().split("train").x[:400].transpose(0, 2, 3, 1), 1, 3)
    first = extractor().extract(torch.from_numpy(x[:200].transpose(0, 3, 1, 2).copy()).split(200)).x
    places = [write(tmp_path / "p", x[200:]), write(tmp_path / "j", x[200:], "jpg", quality=20)]
    png, jpeg = (distance(first, Samples([place]).features(extractor()).x) for place in places)
    assert jpeg > 1.3 * png, (jpeg, png)


def test_mixed_sizes_are_measured_by_a_network_with_a_note_and_refused_as_pixels(tmp_path: Path) -> None:
    folder = write(tmp_path / "f", pictures(3))
    Image.fromarray(pictures(1, 3, 20, 20)[0]).save(folder / "00001a.png")
    samples = Samples([folder])
    made = samples.features(extractor("random"))
    assert len(made) == 4
    assert "2 sizes (3 of 12×8 colour, 1 of 20×20 colour)" in samples.notes(Counter(PNG=1), (3, 8, 12))[0]
    alone = Samples([write(tmp_path / "g", pictures(3))]).features(extractor("random")).x
    assert np.allclose(made.x[[0, 1, 3]], alone, atol=1e-5), "order is kept"
    with pytest.raises(GencliError, match="'pixels' need images of one size"):
        Samples([folder]).features(extractor("pixels"))


def test_another_size_than_the_reference_and_transparency_are_said(tmp_path: Path) -> None:
    assert "12×8 colour, the reference is 28×28 grey" in notes(write(tmp_path / "f", pictures()), like=(1, 28, 28))
    assert "6 samples have transparency" in notes(write(tmp_path / "a", pictures(6, 4)))


# ------------------------------------------------------------------------------------------------------------ several parts


def test_parts_join_in_the_order_of_their_seeds(tmp_path: Path) -> None:
    a, b = drawn(tmp_path / "a", range(3)), drawn(tmp_path / "b", range(3, 8), seconds=9.0)
    joined = Samples([b, a])
    assert torch.equal(torch.cat(list(joined.items())), torch.cat([read(a), read(b)]))
    receipt = joined.receipt()
    assert (
        receipt["seeds"] == "0-7" and receipt["images"] == 8 and receipt["run"] == "r" and receipt["rounding"] == "down"
    )


def test_a_zip_keeps_its_receipt_and_labels_are_counted(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "a", range(5))
    document = json.loads((folder / "samples.json").read_text())
    document["items"] = [{**item, "label": min(i, 1)} for i, item in enumerate(document["items"])]
    (folder / "samples.json").write_text(json.dumps(document))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, f"a/{path.name}")
    joined = Samples([tmp_path / "a.zip", drawn(tmp_path / "b", range(5, 7))])
    assert len(torch.cat(list(joined.items()))) == 7 and joined.receipt()["seeds"] == "0-6"
    assert joined.receipt()["labels"] == "uneven, 1 to 4 a class" and Samples([folder]).receipt()["run"] == "r"
    assert Samples([tmp_path / "b"]).receipt()["labels"] == "none"


def test_gaps_and_overlaps_are_refused_by_their_seeds(tmp_path: Path) -> None:
    a = drawn(tmp_path / "a", range(4))
    with pytest.raises(GencliError, match=r"overlap: 2-3 "):
        Samples([a, drawn(tmp_path / "over", range(2, 6))])
    with pytest.raises(GencliError, match=r"gap: 4-5 ") as error:
        Samples([a, drawn(tmp_path / "gap", range(6, 8))])
    assert "--seeds 4-5" in error.value.hint
    with pytest.raises(GencliError, match=r"overlap: 0-3 "):
        Samples([a, a])


def test_parts_of_another_origin_or_without_one_are_refused(tmp_path: Path) -> None:
    a = drawn(tmp_path / "a", range(4))
    with pytest.raises(GencliError, match="weights abc and xyz"):
        Samples([a, drawn(tmp_path / "b", range(4, 6), weights="xyz")])
    with pytest.raises(GencliError, match="sampler"):
        Samples([a, drawn(tmp_path / "c", range(4, 6), sampler={"name": "heun"})])
    with pytest.raises(GencliError, match="d has no receipt"):
        Samples([a, write(tmp_path / "d", pictures(2))])


def test_a_receipt_says_which_files_are_samples(tmp_path: Path) -> None:
    folder = drawn(tmp_path / "a", range(3))
    Image.new("RGB", (12, 8)).save(folder / "00077.png")  # left by an earlier, larger set
    assert len(read(folder)) == 3
    (folder / "00001.png").unlink()
    with pytest.raises(GencliError, match=r"lacks 1 of the 3 samples of its receipt, first 00001.png"):
        read(folder)
    (folder / "samples.json").write_text("{")
    with pytest.raises(GencliError, match="damaged"):
        Samples([folder])


# --------------------------------------------------------------------------------------------------------------- references


def test_an_array_is_a_reference_known_by_its_content(tmp_path: Path) -> None:
    arrays = pictures(5)
    data = Reference(npz(tmp_path / "ref.npz", arr_0=arrays))
    assert np.array_equal(data.split("test").x, arrays.transpose(0, 3, 1, 2)) and data.name == "ref"
    assert data.spec.x.shape == (3, 8, 12) and reference_codecs(data, "test") == Counter({ARRAY: 5})
    arrays[0, 0, 0, 0] ^= 1
    assert Reference(npz(tmp_path / "other.npz", arr_0=arrays)).hash != data.hash


def test_a_folder_s_formats_are_known(tmp_path: Path) -> None:
    from gencli.data import open_data

    write(tmp_path / "test", pictures(4), "jpg")
    write(tmp_path / "train", pictures(4))
    data = open_data(str(tmp_path))
    assert reference_codecs(data, "test") == Counter(JPEG=4) and reference_codecs(data, "train") == Counter(PNG=4)


def test_a_protocol_s_reference_is_the_whole_split(tmp_path: Path) -> None:
    from gencli.evaluation.evaluate import Plan, reference_of

    data = Reference(npz(tmp_path / "ref.npz", arr_0=pictures(2100, 1, 4, 4)))
    for whole, count in ((False, 2048), (True, 2100)):
        real, facts = reference_of(data, Plan(10, whole=whole), extractor("pixels"))
        assert len(real) == facts["reference_items"] == count
