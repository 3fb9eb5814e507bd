"""Pairs of images: two layouts of a folder, edges of other data sets, and what moves and is scaled with them."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import opened

from gencli.codecs.pixels import Pixels
from gencli.core import Field, Rng
from gencli.data import open_table
from gencli.data._augment import augment
from gencli.data.edges import edges
from gencli.data.pairs import Pairs
from gencli.errors import GencliError


def picture(seed, size=(12, 12)):
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def write(root, count=80, layout="apart", first="A", second="B"):
    """Pairs of 12×12: both layouts hold the same."""
    for i in range(count):
        a, b = picture(2 * i), picture(2 * i + 1)
        if layout == "beside":
            root.mkdir(exist_ok=True)
            Image.fromarray(np.concatenate([a, b], 1)).save(root / f"{i:03d}.png")
            continue
        for folder, pixels, ending in ((first, a, "png"), (second, b, "bmp")):
            (root / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / folder / f"{i:03d}.{ending}")
    return root


def pairs(root, **settings):
    return Pairs.make({"path": str(root), "image_size": "12", **settings})


def by_name(data):
    made = {}
    for key in ("train", "test"):
        part = data.split(key)
        batch = part.batch(torch.arange(len(part)))
        made |= {name[:3]: (given, x) for name, given, x in zip(part.ids, batch["image"], batch["x"], strict=True)}
    return made


@pytest.mark.parametrize("layout", ["apart", "beside"])
def test_a_is_the_condition_and_b_is_painted_in_both_layouts(tmp_path, layout):
    data = pairs(write(tmp_path / "p", layout=layout))
    found = by_name(data)
    assert len(found) == 80 and 0 < len(data.split("test")) < 25
    for i in (0, 7, 79):
        given, x = (torch.from_numpy(picture(2 * i + part).transpose(2, 0, 1).copy()) for part in (0, 1))
        assert torch.equal(found[f"{i:03d}"][0], given) and torch.equal(found[f"{i:03d}"][1], x)
    assert data.spec.x.shape == data.spec.cond["image"].shape == (3, 12, 12)
    back = by_name(pairs(tmp_path / "p", direction="b-to-a"))
    assert all(
        torch.equal(back[name][0], x) and torch.equal(back[name][1], given) for name, (given, x) in found.items()
    )
    assert any("12×12 each" in note for note in data.notes), data.notes


def test_each_half_is_fitted_by_itself(tmp_path):
    a, b = np.zeros((20, 10, 3), np.uint8), np.full((20, 10, 3), 255, np.uint8)
    (tmp_path / "p").mkdir()
    for i in range(3):
        Image.fromarray(np.concatenate([a, b], 1)).save(tmp_path / "p" / f"{i}.png")
    for fit in ("crop", "stretch"):
        part = pairs(tmp_path / "p", fit=fit).split("train")
        assert not part.cond["image"].any() and (part.x == 255).all()
    padded = pairs(tmp_path / "p", fit="pad", background="#404040").split("train")
    assert padded.x[0, 0, 0, 0] == 0x40 == int(padded.cond["image"][0, 0, 0, 0]) and padded.x[0, 0, 0, 6] == 255


def test_folders_of_splits_are_the_splits(tmp_path):
    for split, count in (("train", 5), ("test", 3)):
        write(tmp_path / "p", count, first=f"A/{split}", second=f"B/{split}")
    data = pairs(tmp_path / "p")
    assert [len(data.split(key)) for key in ("train", "test")] == [5, 3]


def test_a_changed_half_is_a_changed_pair(tmp_path):
    root = write(tmp_path / "p", 4)
    before, old = pairs(root).hash, pairs(root).index
    Image.fromarray(picture(99)).save(root / "B" / "002.bmp")
    now = pairs(root)
    assert now.hash != before and now.changed(old) == 1


def test_pairs_that_are_none_are_named(tmp_path):
    root = write(tmp_path / "p", 4)
    (root / "B" / "003.bmp").rename(root / "B" / "x.bmp")
    with pytest.raises(GencliError, match=r"1 image of .* without one of the same name in B: A/003\.png"):
        pairs(root).split("train")
    (root / "A" / "003.png").rename(root / "A" / "x.png")
    Image.fromarray(picture(1)).save(root / "A" / "x.bmp")
    with pytest.raises(GencliError, match=r"two images called A/x"):
        pairs(root).split("train")
    (root / "A" / "x.bmp").rename(root / "x.bmp")
    with pytest.raises(GencliError, match=r"x\.bmp outside"):
        pairs(root).split("train")
    odd = write(tmp_path / "q", 3, "beside")
    Image.fromarray(picture(5, (25, 12))).save(odd / "odd.png")
    assert pairs(odd).unreadable == {"odd.png": "25 pixels wide, which are no two halves"}


# ------------------------------------------------------------------------------------------------------------------- edges


def test_edges_of_a_square_are_its_outline_and_a_flat_image_has_none():
    image = np.zeros((2, 3, 16, 16), np.uint8)
    image[0, :, 4:12, 5:13] = 200
    drawn = edges(image)
    assert drawn.shape == (2, 1, 16, 16) and set(np.unique(drawn)) == {0, 255} and not drawn[1].any()
    rows, columns = np.nonzero(drawn[0, 0])
    near = np.minimum.reduce([abs(rows - 3.5), abs(rows - 11.5), abs(columns - 4.5), abs(columns - 12.5)])
    assert near.max() <= 1
    assert (drawn[0, 0, 6:10].any(1)).all() and (drawn[0, 0, :, 7:11].any(0)).all()
    assert (drawn[0, 0, 6:10] > 0).sum(1).tolist() == [2] * 4, "one pixel wide"


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_turned_image_has_turned_edges(k):
    image = np.random.default_rng(0).normal(size=(4, 1, 5, 5))
    smooth = np.kron(image, np.ones((4, 4)))
    levels = ((smooth - smooth.min()) / np.ptp(smooth) * 255).astype(np.uint8)
    same = edges(levels) == np.rot90(edges(np.rot90(levels, k, (2, 3)).copy()), -k, (2, 3))
    assert same.mean() > 0.95, "but for ties"


def test_edges_go_with_the_images_of_the_other_set():
    data, digits = (opened({"name": name, "image_size": 8}) for name in ("edges", "digits"))
    part = data.split("test")
    assert np.array_equal(part.x, digits.split("test").x) and part.ids == digits.split("test").ids
    assert np.array_equal(part.cond["image"].numpy(), edges(part.x)) and data.name == "digits-edges"
    assert list(data.spec.cond) == ["image", "label"] and data.spec.x == digits.spec.x
    wide = open_table({"name": "edges", "of": "cifar10"}).spec
    assert wide.x.shape == (3, 32, 32) and wide.cond["image"].shape == (1, 32, 32)
    with pytest.raises(GencliError, match="edges of 'toy2d' cannot be made"):
        open_table({"name": "edges", "of": "toy2d"})


# ---------------------------------------------------------------------------------------------------- beside the picture


def test_pixels_scales_images_among_the_conditions_and_nothing_else():
    codec, spec = Pixels.make({}), open_table({"name": "edges", "image_size": 8}).spec
    made = codec.spec(spec)
    assert made.cond["image"] == Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0))
    assert made.cond["label"] == spec.cond["label"]
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
    batch = codec.encode({"x": levels, "image": levels, "label": torch.arange(3)})
    torch.testing.assert_close(batch["image"][:, 0, 0, 0], torch.tensor([-1.0, -0.6, 1.0]))
    assert torch.equal(batch["label"], torch.arange(3)) and len(batch["x"].unique()) == 3
    again = codec.decode(batch)
    assert torch.equal(again["image"], batch["image"])


def test_both_images_of_a_pair_move_alike():
    x = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    moved = augment({"x": x, "image": x[:, :1].clone()}, 2, True, Rng.batch("a", total=16))
    assert torch.equal(moved["x"][:, :1], moved["image"]) and not torch.equal(moved["x"], x)


def test_a_smaller_image_is_mirrored_with_its_large_one_and_cannot_be_shifted():
    x = torch.randint(256, (16, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pair = {"x": x, "image": x[:, :, ::2, 1:7:2]}
    made = augment(pair, 0, True, Rng.batch("a", total=16))
    turned = (made["x"] != x).flatten(1).any(1)
    assert 0 < int(turned.sum()) < 16
    assert torch.equal(made["image"][turned], pair["image"][turned].flip(-1))
    assert torch.equal(made["image"][~turned], pair["image"][~turned])
    with pytest.raises(GencliError, match="shift 2 would move images of 8×8 pixels away"):
        augment(pair, 2, True, Rng.batch("a", total=16))
