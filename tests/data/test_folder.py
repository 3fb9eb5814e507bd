"""Folders and zips of images: each rule with real files."""

import json
import os
import shutil
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from gencli.data import _cache, open_data
from gencli.data._decode import Picture, decode, fit_to
from gencli.data._report import check
from gencli.data.folder import Folder, parse_size, slug
from gencli.errors import GencliError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def noise(seed, size=(12, 12), mode="RGB"):
    channels = {"RGB": 3, "RGBA": 4, "CMYK": 4, "L": 1}[mode]
    array = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(array[..., 0] if channels == 1 else array, mode if mode == "CMYK" else None)


def fill(folder, count, first=0, **how):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        noise(zlib.crc32(f"{folder.name}{i}".encode()), **how).save(folder / f"{i:03d}.png")
    return folder


def pictures(data):
    """Every readable image by its name, whichever split it is in."""
    return {
        name: split.x[i]
        for split in (data.split("train"), data.split("test"))
        for i, name in enumerate(split.ids or [])
    }


def sides(data):
    return {name: key for key in ("train", "test") for name in data.split(key).ids}


def one(folder, **settings):
    """The only image of a folder, at 8×8 unless said."""
    data = Folder.make({"path": str(folder), "image_size": "8", **settings})
    [image] = pictures(data).values()
    return image, data


def has(data, words):
    assert any(words in note for note in data.notes), data.notes


# --------------------------------------------------------------------------------------------------------- kinds of files


def test_transparency_is_laid_on_white_or_on_the_colour_asked_for(tmp_path):
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    image, data = one(tmp_path)
    assert (image == 255).all()
    has(data, "1 with transparency, laid on white")
    image, _ = one(tmp_path, background="#000080")
    assert [int(plane[0, 0]) for plane in image] == [0, 0, 128]


def test_half_transparency_is_mixed_and_an_opaque_alpha_is_not_counted(tmp_path):
    Image.new("RGBA", (8, 8), (0, 0, 0, 128)).save(tmp_path / "a.png")
    image, _ = one(tmp_path)
    assert abs(int(image[0, 0, 0]) - 127) <= 1
    Image.new("RGBA", (8, 8), (9, 8, 7, 255)).save(tmp_path / "a.png")
    image, data = one(tmp_path)
    assert image[:, 0, 0].tolist() == [9, 8, 7] and not any("laid on" in note for note in data.notes)


def test_a_palette_with_transparency_keeps_its_colours_and_loses_its_hole(tmp_path):
    paletted = Image.new("P", (8, 8), 1)
    paletted.putpalette([*GREEN, *RED, *BLUE])
    paletted.paste(2, (0, 0, 4, 8))
    paletted.save(tmp_path / "a.png", transparency=1)
    image, data = one(tmp_path)
    assert image[:, 4, 0].tolist() == list(BLUE) and image[:, 4, 7].tolist() == list(WHITE)
    assert check(data).modes == {"P": 1} and data.spec.x.shape[0] == 3


def test_a_palette_of_greys_is_grey(tmp_path):
    paletted = Image.new("P", (8, 8), 1)
    paletted.putpalette([0, 0, 0, 77, 77, 77])
    paletted.save(tmp_path / "a.gif")
    image, data = one(tmp_path)
    assert image.shape == (1, 8, 8) and (image == 77).all() and data.spec.x.shape == (1, 8, 8)


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    image, data = one(tmp_path)
    assert image[0].min() > 245 and image[1:].max() < 12
    has(data, "1 CMYK")


def test_sixteen_bits_are_divided_by_257(tmp_path):
    values = np.array([0, 257, 128 * 257, 40000, 65535, 65535, 0, 0], np.uint16)
    Image.fromarray(np.tile(values, (8, 1))).save(tmp_path / "a.png")
    image, data = one(tmp_path)
    assert image.shape == (1, 8, 8) and image[0, 3].tolist() == [0, 1, 128, 156, 255, 255, 0, 0]
    has(data, "1 with 16 or 32 bits")


def test_floats_from_zero_to_one_are_read_and_others_are_reported(tmp_path):
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "a.tif")
    Image.fromarray(np.full((8, 8), 7.0, np.float32)).save(tmp_path / "b.tif")
    image, data = one(tmp_path)
    assert (image == 128).all() and "from 7 to 7" in data.unreadable["b.tif"]


def test_exif_rotation_is_applied(tmp_path):
    upright = Image.new("RGB", (8, 16), RED)
    upright.paste(BLUE, (0, 8, 8, 16))  # red above blue
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise to show
    upright.rotate(90, expand=True).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    image, data = one(tmp_path, image_size="8x16")
    assert image.shape == (3, 16, 8)
    assert image[0, 2].min() > 200 > 60 > image[0, 13].max() and image[2, 13].min() > 200
    has(data, "1 turned by their EXIF rotation")
    assert check(data).sizes["smallest"] == "8×16"


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    lossless = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], **lossless)
    image, data = one(tmp_path)
    assert image[:, 4, 4].tolist() == list(RED)
    has(data, "1 with several frames")


def test_any_case_of_extension_any_depth_and_any_alphabet(tmp_path):
    for i, name in enumerate(["A.JPG", "b.PnG", "très/çà/写真.Jpeg", "x/y/z/пример.WEBP", "dots.in.name.bmp"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        noise(i).save(tmp_path / name, {"JPG": "JPEG"}.get(name.rsplit(".", 1)[1].upper()))
    data = Folder.make({"path": str(tmp_path)})
    assert set(pictures(data)) == {"A.JPG", "b.PnG", "très/çà/写真.Jpeg", "x/y/z/пример.WEBP", "dots.in.name.bmp"}


def test_damaged_files_are_named_counted_and_never_dropped_in_silence(tmp_path):
    fill(tmp_path, 3)
    noise(9, (64, 64)).save(tmp_path / "cut.jpg", quality=95)
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "phone.HEIC").write_bytes(b"ftypheic")
    (tmp_path / "camera.NEF").write_bytes(b"II*")
    data = Folder.make({"path": str(tmp_path)})
    assert len(pictures(data)) == 3
    reasons = data.unreadable
    assert set(reasons) == {"cut.jpg", "text.png", "empty.png", "phone.HEIC", "camera.NEF"}
    assert "truncated" in reasons["cut.jpg"] and "HEIC is not supported" in reasons["phone.HEIC"]
    assert reasons["empty.png"] == "empty file" and "not an image" in reasons["text.png"]
    has(data, "5 image files could not be read: camera.NEF")


def test_a_decompression_bomb_is_reported_without_being_decoded(tmp_path):
    def chunk(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    for name, side in (("large.png", 12_000), ("huge.png", 60_000)):
        header = side.to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
        body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    noise(0).save(tmp_path / "a.png")
    _, data = one(tmp_path)
    assert "decompression bomb" in data.unreadable["large.png"] and "bomb" in data.unreadable["huge.png"].lower()


def test_what_systems_leave_behind_is_ignored_and_counted(tmp_path):
    fill(tmp_path, 2)
    for name in ("._000.png", ".DS_Store", "Thumbs.db", "__MACOSX/000.png", ".git/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "000.png", tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    data = Folder.make({"path": str(tmp_path)})
    assert len(pictures(data)) == 2 and not data.unreadable
    has(data, "ignored: 5 hidden or system files, 1 .txt")
    assert check(data).junk == 5 and check(data).others == {".txt": 1}


# ------------------------------------------------------------------------------------------------------------ mode and fit


def test_the_mode_is_the_majoritys_and_a_tie_is_colour(tmp_path):
    fill(tmp_path / "a", 3, mode="L")
    fill(tmp_path / "b", 2)
    grey = Folder.make({"path": str(tmp_path), "image_size": "12"})
    assert grey.spec.x.shape == (1, 12, 12)
    has(grey, "5 images in grey, as most of them are, 2 of them turned grey")
    native = np.asarray(Image.open(tmp_path / "b" / "000.png").convert("L"))
    assert np.array_equal(pictures(grey)["b/000.png"][0], native)
    fill(tmp_path / "b", 1, first=2)
    colour = Folder.make({"path": str(tmp_path), "image_size": "12"})
    assert colour.spec.x.shape == (3, 12, 12)
    native = np.asarray(Image.open(tmp_path / "a" / "000.png"))
    assert all(np.array_equal(plane, native) for plane in pictures(colour)["a/000.png"])


def striped():
    """24 wide, 8 high: red, green, blue thirds."""
    image = Image.new("RGB", (24, 8), GREEN)
    image.paste(RED, (0, 0, 8, 8))
    image.paste(BLUE, (16, 0, 24, 8))
    return image


def test_crop_takes_the_centre_and_says_what_is_lost(tmp_path):
    striped().save(tmp_path / "a.png")
    image, data = one(tmp_path)
    assert (image.transpose(1, 2, 0) == GREEN).all()
    has(data, "cut to the centre: 66.7% of the pixels lost")


def test_pad_keeps_everything_on_the_background(tmp_path):
    striped().save(tmp_path / "a.png")
    image, data = one(tmp_path, fit="pad", image_size="24", background="black")
    assert image[:, 0].max() == 0 and image[:, -1].max() == 0
    assert np.array_equal(image[:, 8:16].transpose(1, 2, 0), np.asarray(striped()))
    has(data, "padded with black: 66.7% of the result, no pixel lost")


def test_stretch_fills_and_says_so(tmp_path):
    striped().save(tmp_path / "a.png")
    image, data = one(tmp_path, fit="stretch", image_size="24")
    assert image[0, 12, 2] > 250 and image[1, 12, 12] > 250 and image[2, 12, 22] > 250
    has(data, "stretched: aspect changed by 200.0%")


def test_an_image_of_the_size_asked_for_is_left_alone_and_reducing_is_antialiased():
    native = noise(0, (20, 14))
    assert np.array_equal(np.asarray(fit_to(native, (14, 20), "crop", WHITE)[0]), np.asarray(native))
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    small = np.asarray(fit_to(checks, (8, 8), "crop", WHITE)[0])
    assert small.min() > 110 and small.max() < 145


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (7, 5)])
def test_odd_shapes_survive_every_fit(fit, size):
    image, share = fit_to(noise(0, size), (6, 9), fit, WHITE)
    assert image.size == (9, 6) and share >= 0


def test_sizes_are_width_by_height_and_absent_is_32(tmp_path):
    fill(tmp_path, 1)
    assert Folder.make({"path": str(tmp_path)}).spec.x.shape == (3, 32, 32)
    assert Folder.make({"path": str(tmp_path), "image_size": 16}).spec.x.shape == (3, 16, 16)
    assert Folder.make({"path": str(tmp_path), "image_size": "64x96"}).spec.x.shape == (3, 96, 64)
    has(Folder.make({"path": str(tmp_path)}), "size 32×32, the default")
    for bad in ("x", "12x", "-4", "3", "5000", "0x8"):
        with pytest.raises(GencliError, match="image_size is"):
            parse_size(bad)
    with pytest.raises(GencliError, match="background is 'pinkish'"):
        Folder.make({"path": str(tmp_path), "background": "pinkish"})


def test_grey_values_survive_decoding_in_both_directions():
    for mode, value in (("L", 77), ("1", 255), ("LA", (77, 255))):
        out = __import__("io").BytesIO()
        Image.new(mode, (6, 6), value).save(out, "PNG")
        found, pixels = decode(out.getvalue(), (6, 6), "crop", WHITE)
        assert isinstance(found, Picture) and found.grey and len(np.unique(pixels)) == 1
        assert pixels[0, 0, 0] == (value if isinstance(value, int) else value[0])


# ----------------------------------------------------------------------------------------------------------------- classes


def test_class_folders_make_classes_and_unconditional_undoes_it(tmp_path):
    fill(tmp_path / "dog", 12)
    fill(tmp_path / "cat" / "deep", 10)
    data = Folder.make({"path": str(tmp_path)})
    assert data.spec.cond["label"].names == ("cat", "dog")
    for split in (data.split("train"), data.split("test")):
        names = [data.spec.cond["label"].names[label] for label in split.cond["label"].tolist()]
        assert names == [item.split("/")[0] for item in split.ids]
    has(data, "2 classes: cat 10, dog 12")
    plain = Folder.make({"path": str(tmp_path), "unconditional": True})
    assert not plain.spec.cond and not plain.split("train").cond and plain.hash != data.hash


def test_classes_called_by_numbers_are_in_the_order_of_numbers(tmp_path):
    for name in ("10", "9", "0"):
        fill(tmp_path / name, 10, size=(4, 4))
    data = Folder.make({"path": str(tmp_path)})
    assert data.spec.cond["label"].names == ("0", "9", "10")


@pytest.mark.parametrize(
    ("folders", "why"),
    [
        ({"a": 12, "b": 9}, "b has 9 images, every class needs 10"),
        ({"a": 30}, "1 folder, understood as classes are 2 to 1000"),
        ({"a": 12, "b": 12, ".": 1}, "1 image in no class folder"),
        ({"a": 12, "train": 12}, "the folder train is named like a split"),
        ({"a": 12, "Valid": 12}, "the folder Valid is named like a split"),
    ],
)
def test_folders_that_are_not_classes_are_explained(tmp_path, folders, why):
    for name, count in folders.items():
        fill(tmp_path / name, count, size=(4, 4))
    data = Folder.make({"path": str(tmp_path), "image_size": "4"})
    assert not data.spec.cond
    has(data, f"no classes: {why}")


def test_an_unreadable_image_does_not_count_for_its_class(tmp_path):
    fill(tmp_path / "a", 12)
    fill(tmp_path / "b", 9)
    (tmp_path / "b" / "bad.png").write_bytes(b"bad")
    assert not Folder.make({"path": str(tmp_path)}).spec.cond


def test_labels_csv_beats_folders_and_names_what_it_lacks(tmp_path):
    fill(tmp_path / "x", 13)
    fill(tmp_path / "y", 13)
    rows = [f"x/{i:03d}.png,{'odd' if i % 2 else 'even'}" for i in range(12)]
    rows += [f"./y\\{i:03d}.png,{'odd' if i % 2 else 'even'}" for i in range(13)]
    (tmp_path / "labels.csv").write_text("\ufeffFile, Label\n" + "\n".join([*rows, "gone.png,odd"]), encoding="utf-8")
    data = Folder.make({"path": str(tmp_path)})
    assert data.spec.cond["label"].names == ("even", "odd") and len(pictures(data)) == 25
    for split in (data.split("train"), data.split("test")):
        assert split.cond["label"].tolist() == [int(name[-7:-4]) % 2 for name in split.ids]
    has(data, "1 image without a label in labels.csv left out: x/012.png")
    has(data, "labels.csv names 1 file not found here as a readable image: gone.png")
    assert check(data).splits["left out"] == 1


def test_a_labels_csv_without_its_columns_is_an_error(tmp_path):
    fill(tmp_path, 2)
    (tmp_path / "labels.csv").write_text("name,class\n")
    with pytest.raises(GencliError, match="needs the columns file and label, it has name, class"):
        _ = Folder.make({"path": str(tmp_path)}).spec
    (tmp_path / "labels.csv").write_text("file,label\n000.png,a\n000.png,b\n")
    with pytest.raises(GencliError, match=r"two different rows for 000\.png"):
        _ = Folder.make({"path": str(tmp_path)}).spec


# ------------------------------------------------------------------------------------------------------------------ splits


def test_the_split_is_stable_when_files_are_added(tmp_path):
    fill(tmp_path, 120, size=(4, 4))
    before = sides(Folder.make({"path": str(tmp_path), "image_size": "4"}))
    assert 3 <= sum(side == "test" for side in before.values()) <= 25
    fill(tmp_path / "new", 60, size=(4, 4))
    fill(tmp_path, 10, first=500, size=(4, 4))
    after = sides(Folder.make({"path": str(tmp_path), "image_size": "4"}))
    assert len(after) == 190 and all(after[name] == side for name, side in before.items())


def test_exact_duplicates_share_a_side_under_every_grouping(tmp_path):
    fill(tmp_path / "a", 40, size=(4, 4))
    for i in range(40):
        (tmp_path / "b").mkdir(exist_ok=True)
        shutil.copy(tmp_path / "a" / f"{i:03d}.png", tmp_path / "b" / f"copy{i}_1.png")
    data = Folder.make({"path": str(tmp_path), "image_size": "4"})
    side = sides(data)
    assert all(side[f"a/{i:03d}.png"] == side[f"b/copy{i}_1.png"] for i in range(40)) and len(set(side.values())) == 2
    has(data, "40 exact duplicates")
    side = sides(Folder.make({"path": str(tmp_path), "image_size": "4", "group_by": "prefix"}))
    assert all(side[f"a/{i:03d}.png"] == side[f"b/copy{i}_1.png"] for i in range(40)) and len(set(side.values())) == 2


def test_groups_stay_together(tmp_path):
    for patient in range(180):
        (tmp_path / f"ward{patient % 90}").mkdir(exist_ok=True)
        for view in range(2):
            noise(patient * 2 + view, (4, 4)).save(tmp_path / f"ward{patient % 90}" / f"p{patient}_{view}-x.png")
    rows = [f"ward{p % 90}/p{p}_{v}-x.png,g{p // 2}" for p in range(180) for v in range(2)]
    (tmp_path / "labels.csv").write_text("file,group\n" + "\n".join(rows))
    settings = {"path": str(tmp_path), "image_size": "4"}
    keys = {
        "prefix": lambda name: name.split("/")[1].split("_")[0],
        "folder": lambda name: name.split("/")[0],
        "csv": lambda name: int(name.split("/p")[1].split("_")[0]) // 2,
    }
    for group_by, key in keys.items():
        side = sides(Folder.make({**settings, "group_by": group_by}))
        groups = {}
        for name, where in side.items():
            groups.setdefault(key(name), set()).add(where)
        assert len(side) == 360 and all(len(where) == 1 for where in groups.values()) and len(set(side.values())) == 2
    loose = sides(Folder.make(settings))
    assert any(loose[f"ward{p % 90}/p{p}_0-x.png"] != loose[f"ward{p % 90}/p{p}_1-x.png"] for p in range(180))


def test_a_single_group_or_no_group_column_is_an_error(tmp_path):
    for i in range(5):
        noise(i).save(tmp_path / f"img_{i}.png")
    with pytest.raises(GencliError, match="group_by prefix puts all 5 images into one group"):
        _ = Folder.make({"path": str(tmp_path), "group_by": "prefix"}).spec
    with pytest.raises(GencliError, match=r"group_by csv needs labels\.csv"):
        _ = Folder.make({"path": str(tmp_path), "group_by": "csv"}).spec


def test_a_sets_own_split_is_kept_and_classes_are_looked_for_inside(tmp_path):
    for kind in ("cat", "dog"):
        fill(tmp_path / "train" / kind, 10, size=(4, 4))
        fill(tmp_path / "Test" / kind, 2, first=50, size=(4, 4))
    fill(tmp_path / "val", 3, first=90, size=(4, 4))
    data = Folder.make({"path": str(tmp_path), "image_size": "4"})
    assert sides(data) == {
        f"{top}/{kind}/{i:03d}.png": top.lower()
        for top, which in (("train", range(10)), ("Test", range(50, 52)))
        for kind in ("cat", "dog")
        for i in which
    }
    assert data.spec.cond["label"].names == ("cat", "dog")
    has(data, "split as its folders say: 20 train, 4 test")
    has(data, "3 images left out: validation images")


def test_val_is_the_test_split_where_there_is_no_other_and_leaks_are_told(tmp_path):
    fill(tmp_path / "train", 6)
    fill(tmp_path / "valid", 2, first=50)
    shutil.copy(tmp_path / "train" / "000.png", tmp_path / "valid" / "000.png")
    data = Folder.make({"path": str(tmp_path)})
    assert len(data.split("train")) == 6 and len(data.split("test")) == 3
    has(data, "1 image in both train and test")


def test_one_image_is_for_training_whatever_its_hash(tmp_path):
    for i in range(30):
        folder = tmp_path / str(i)
        fill(folder, 1, first=i, size=(4, 4))
        data = Folder.make({"path": str(folder), "image_size": "4"})
        assert len(data.split("train")) == 1 and data.split("test").x.shape == (0, 3, 4, 4)
    has(data, "nothing held out")


# ----------------------------------------------------------------------------------------------- hash, cache, change, moves


def test_the_hash_follows_one_pixel_and_not_the_place(tmp_path, monkeypatch):
    fill(tmp_path / "here", 5, size=(64, 64))
    data = Folder.make({"path": str(tmp_path / "here"), "image_size": "4"})
    first, index = data.hash, data.index
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.setattr(Folder, "_decode", lambda *_: pytest.fail("a moved folder is not decoded again"))
    moved = Folder.make({"path": str(tmp_path / "there"), "image_size": "4"})
    assert moved.hash == first and moved.changed(index) == 0
    monkeypatch.undo()
    monkeypatch.setenv("GENCLI_HOME", str(tmp_path / "home"))
    image = Image.open(tmp_path / "there" / "002.png")
    image.putpixel((0, 0), tuple(v ^ 1 for v in image.getpixel((0, 0))))
    image.save(tmp_path / "there" / "002.png")
    changed = Folder.make({"path": str(tmp_path / "there"), "image_size": "4"})
    assert changed.hash != first and changed.changed(index) == 1


def test_changed_counts_what_was_added_removed_and_edited(tmp_path):
    fill(tmp_path, 5)
    index = json.loads(json.dumps(Folder.make({"path": str(tmp_path)}).index))
    (tmp_path / "000.png").unlink()
    fill(tmp_path, 2, first=10)
    shutil.copy(tmp_path / "002.png", tmp_path / "003.png")
    (tmp_path / "labels.csv").write_text("file,label\n")
    assert Folder.make({"path": str(tmp_path)}).changed(index) == 5


@pytest.mark.parametrize(
    "setting", [{"fit": "pad"}, {"image_size": "16"}, {"background": "black"}, {"group_by": "folder"}]
)
def test_every_setting_is_in_the_hash(tmp_path, setting):
    fill(tmp_path / "a", 2)
    fill(tmp_path / "b", 2)
    base = Folder.make({"path": str(tmp_path)}).hash
    assert Folder.make({"path": str(tmp_path), **setting}).hash != base
    assert Folder.make({"path": str(tmp_path), "image_size": "32x32", "background": "#ffffff"}).hash == base


def age(folder, seconds=100):
    """Make files look old, so that their hashes may be remembered."""
    for file in folder.rglob("*"):
        stat = file.stat()
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns - seconds * 10**9))


def test_a_second_opening_reads_no_file_and_a_new_file_is_read_alone(tmp_path, monkeypatch):
    root = fill(tmp_path / "set", 6)
    age(root)
    first = Folder.make({"path": str(root)})
    before = pictures(first)
    reads = []
    real = _cache._digest
    monkeypatch.setattr(_cache, "_digest", lambda source, name: (reads.append(name), real(source, name))[1])
    again = Folder.make({"path": str(root)})
    assert again.hash == first.hash and reads == []
    assert all(np.array_equal(before[name], x) for name, x in pictures(again).items())
    fill(root, 1, first=90)
    assert Folder.make({"path": str(root)}).hash != first.hash and reads == ["090.png"]


def test_a_file_that_was_written_just_now_is_hashed_again(tmp_path):
    root = fill(tmp_path / "set", 3)
    stamp = (root / "001.png").stat()
    before = Folder.make({"path": str(root)}).hash
    raw = bytearray((root / "001.png").read_bytes())
    raw[-1] ^= 1
    (root / "001.png").write_bytes(raw)
    os.utime(root / "001.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # within one tick of a coarse clock
    assert Folder.make({"path": str(root)}).hash != before


def test_the_cache_is_whole_or_absent_and_a_damaged_one_is_made_again(tmp_path):
    root = fill(tmp_path / "set", 6)
    data = Folder.make({"path": str(root)})
    before = pictures(data)
    assert sorted(p.name for p in data.place.iterdir()) == ["found.json", "test.npy", "train.npy"]
    assert not [p for p in data.place.parent.iterdir() if p.name.endswith(".tmp")]
    has(data, f"decoded once to {data.place}")
    for damage in ("train.npy", "found.json"):
        path = data.place / damage
        path.write_bytes(path.read_bytes()[:50])
        after = pictures(Folder.make({"path": str(root)}))
        assert set(after) == set(before) and all(np.array_equal(after[n], before[n]) for n in before)


def test_a_large_split_is_mapped_and_gives_the_same_batches(tmp_path, monkeypatch):
    root = fill(tmp_path / "set", 30)
    small = Folder.make({"path": str(root)}).split("train")
    monkeypatch.setattr(_cache, "IN_MEMORY", 0)
    large = Folder.make({"path": str(root)}).split("train")
    assert isinstance(large.x, np.memmap) and not isinstance(small.x, np.memmap)
    rows = torch.tensor([5, 0, 5])
    assert large.batch(rows)["x"].equal(small.batch(rows)["x"])


def test_the_caches_limit_drops_what_was_used_longest_ago(tmp_path, monkeypatch):
    roots = [fill(tmp_path / name, 4) for name in ("a", "b", "c")]
    one_size = 4 * 3 * 32 * 32
    monkeypatch.setenv("GENCLI_CACHE_GB", str(3.0 * one_size / 1e9))
    places = []
    for age_of, root in zip((300, 200), roots[:2], strict=True):
        places.append(Folder.make({"path": str(root)}))
        os.utime(places[-1].place, (1e9 - age_of, 1e9 - age_of))
    Folder.make({"path": str(roots[0])}).split("train")  # used again: now b is the oldest
    last = Folder.make({"path": str(roots[2])})
    assert last.place.is_dir() and places[0].place.is_dir() and not places[1].place.is_dir()
    monkeypatch.setenv("GENCLI_CACHE_GB", "0.000001")
    with pytest.raises(GencliError, match=r"need .* kB, the cache may hold 1\.0 kB"):
        _ = Folder.make({"path": str(roots[1])}).spec


def test_progress_is_told_and_ends_at_the_total(tmp_path):
    data = Folder.make({"path": str(fill(tmp_path / "set", 5))})
    told = []
    data.progress = lambda *args: told.append(args)
    _ = data.spec
    assert ("reading set", 5, 5) in told and told[-1] == ("decoding set", 5, 5)


# -------------------------------------------------------------------------------------------------------------------- zips


def zipped(path, folder, root="", names=None):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, f"{root}{file.relative_to(folder).as_posix()}")
        for name, data in (names or {}).items():
            archive.writestr(name, data)
    return path


def test_a_zip_is_read_like_the_folder_it_was_made_of(tmp_path):
    root = tmp_path / "set"
    for kind in ("cat", "dog"):
        fill(root / kind, 10)
    plain = Folder.make({"path": str(root)})
    for wrapper in ("", "My Photos/"):
        data = Folder.make({"path": str(zipped(tmp_path / "set.zip", root, wrapper, {"__MACOSX/x.png": b"x"}))})
        assert data.spec == plain.spec and data.name == "set" and sides(data) == sides(plain)
        assert all(np.array_equal(x, pictures(plain)[name]) for name, x in pictures(data).items())


def test_names_that_leave_a_zip_are_refused_and_nothing_is_extracted(tmp_path):
    root = fill(tmp_path / "set", 3)
    raw = (root / "000.png").read_bytes()
    evil = {"../escape.png": raw, "/abs.png": raw, "a/../../b.png": raw, "C:/win.png": raw}
    (tmp_path / "box").mkdir()
    path = zipped(tmp_path / "box" / "x.zip", root, "", evil)
    before = {p for p in tmp_path.rglob("*") if "gencli-home" not in p.parts}
    data = Folder.make({"path": str(path)})
    assert len(pictures(data)) == 3 and set(data.unreadable) == set(evil)
    assert all("leads out" in why for why in data.unreadable.values())
    assert {p for p in tmp_path.rglob("*") if "gencli-home" not in p.parts} == before


def test_members_that_are_too_large_or_damaged_are_reported(tmp_path, monkeypatch):
    root = fill(tmp_path / "set", 3)
    path = zipped(tmp_path / "x.zip", root, "", {"large.png": b"\0" * 5000})
    monkeypatch.setattr("gencli.data._source.LARGEST", 4000)
    raw = bytearray(path.read_bytes())
    raw[raw.find(b"IDAT") + 10] ^= 255  # the first member's checksum fails
    path.write_bytes(raw)
    data = Folder.make({"path": str(path)})
    assert set(data.unreadable) == {"000.png", "large.png"} and "CRC" in data.unreadable["000.png"]
    assert "larger than" in data.unreadable["large.png"] and len(pictures(data)) == 2


# ------------------------------------------------------------------------------------------------------ errors and reports


def test_an_empty_folder_and_a_missing_path_are_errors_that_name_them(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.txt").write_text("x")
    with pytest.raises(GencliError, match=r"no images in .*empty") as caught:
        _ = Folder.make({"path": str(tmp_path / "empty")}).spec
    assert "1 .txt" in caught.value.hint and "png" in caught.value.hint
    with pytest.raises(GencliError, match=r"no folder or zip at .*gone"):
        _ = Folder.make({"path": str(tmp_path / "gone")}).spec
    with pytest.raises(GencliError, match="neither a folder nor a zip"):
        _ = Folder.make({"path": str(tmp_path / "empty" / "a.txt")}).spec
    with pytest.raises(GencliError, match="needs a path"):
        _ = Folder.make({}).spec


def test_a_folder_of_which_nothing_can_be_read_is_an_error_with_reasons(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    (tmp_path / "b.png").write_bytes(b"x")
    with pytest.raises(GencliError, match=r"none of the 2 image files .*a\.heic: HEIC is not supported"):
        _ = Folder.make({"path": str(tmp_path)}).spec
    assert not [p for p in _cache.folder().iterdir() if p.is_dir()]


def test_names_and_paths_find_their_data(tmp_path, monkeypatch):
    fill(tmp_path / "photos", 1)
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert open_data("digits").name == "digits"  # a registered name comes first
    for text in ("photos", "./photos", str(tmp_path / "photos")):
        assert open_data(text, {"image_size": "4"}).spec.x.shape == (3, 4, 4)
    assert open_data("./photos").config.path == str(tmp_path / "photos")
    with pytest.raises(GencliError, match="no folder or zip"):
        _ = open_data("./gone").spec
    with pytest.raises(GencliError, match="unknown data set 'digitz'") as caught:
        open_data("digitz")
    assert "digits" in caught.value.hint


def test_run_names_come_from_the_folder():
    expected = {"My Photos (2)": "my-photos-2", "Été": "ete", "写真": "folder", "a.b_c": "a-b-c"}
    assert {name: slug(name) for name in expected} == expected


def test_the_report_is_json_and_counts_everything(tmp_path):
    import dataclasses

    fill(tmp_path / "cat", 11, size=(20, 10))
    fill(tmp_path / "dog", 11, size=(30, 10))
    shutil.copy(tmp_path / "cat" / "000.png", tmp_path / "cat" / "twin.png")
    (tmp_path / "bad.jpg").write_bytes(b"x")
    report = check(Folder.make({"path": str(tmp_path), "image_size": "8x16"}))
    assert json.loads(json.dumps(dataclasses.asdict(report)))["images"] == 23
    assert report.duplicates == 1 and list(report.unreadable) == ["bad.jpg"] and report.size == (8, 16)
    assert sum(report.classes["cat"].values()) == 12 and sum(report.splits.values()) == 23
    assert report.formats == {"PNG": 23} and report.modes == {"RGB": 23} and report.mode == "colour"
    assert report.sizes == {"smallest": "20×10", "median": "20×10", "largest": "30×10"}
    assert report.suggestion == f"gencli train ddpm --data {tmp_path} --image-size 8x16"


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_links_are_followed_once(tmp_path):
    root = fill(tmp_path / "set" / "a", 2).parent
    fill(tmp_path / "elsewhere", 3)
    (root / "link").symlink_to(tmp_path / "elsewhere")
    (root / "loop").symlink_to(root)
    (root / "dead.png").symlink_to(tmp_path / "nothing.png")
    data = Folder.make({"path": str(root)})
    assert len(pictures(data)) == 5 and list(data.unreadable) == ["dead.png"]
