"""Sprites: every image is what its factors say, none is kept, and equal images are never on both sides of the split."""

import numpy as np
import pytest
import torch

from gencli.data import open_data
from gencli.data.sprites import SIZES, Drawn, draw, held_out, templates
from gencli.errors import GencliError

FULL = {name: size for name, size in SIZES.items() if name != "colour"}


def opened(**settings):
    return open_data("sprites", settings)


def one(**factors):
    """Images of factors given by name, the others as in the middle of the grid."""
    middle = {"colour": 0, "shape": 0, "scale": 5, "orientation": 0, "x": 16, "y": 16, **factors}
    return np.array([[middle[name] for name in SIZES]], np.uint8)


def test_the_grid_has_the_sizes_of_dsprites_and_nothing_is_drawn_before_it_is_asked_for():
    data = opened()
    train, test = data.split("train"), data.split("test")
    assert len(train) + len(test) == 3 * 6 * 40 * 32 * 32 == 737_280
    assert 0.095 < len(test) / 737_280 < 0.105
    assert list(train.factors) == list(FULL) and {k: int(v.max()) + 1 for k, v in train.factors.items()} == FULL
    assert train.x.nbytes == len(train) * 6 and train.x.shape == (len(train), 1, 64, 64)
    drawn = train.batch(torch.tensor([0, 5, len(train) - 1]))
    assert drawn["x"].dtype == torch.uint8 and drawn["x"].shape == (3, *data.spec.x.shape)
    assert set(drawn["x"].unique().tolist()) == {0, 255} and drawn["label"].tolist() == [0, 0, 2]
    assert np.array_equal(train.x[7:9], train.x[np.array([7, 8])]) and train.x[-1].shape == (1, 64, 64)


def test_an_image_is_what_its_factors_say():
    """Area grows with the square of the scale, the centre of mass is the place, an ellipse lies along its orientation."""
    grid = np.concatenate(
        [one(shape=s, scale=k, x=x, y=y) for s in range(3) for k in range(6) for x, y in ((0, 31), (9, 4))]
    )
    images = draw(grid, smooth=True)[:, 0].astype(int)
    area = images.sum((1, 2)).reshape(3, 6, 2)
    assert (area[..., 0] == area[..., 1]).all()
    assert area[:, :, 0] == pytest.approx(area[:, 5:, 0] * np.linspace(0.5, 1, 6) ** 2, rel=0.04)
    rows, columns = np.mgrid[:64, :64] + 0.5
    for image, (_, _, _, _, x, y) in zip(images, grid, strict=True):
        assert (image * columns).sum() / image.sum() == pytest.approx(16.5 + x, abs=0.01)
        assert (image * rows).sum() / image.sum() == pytest.approx(16.5 + y, abs=0.25)
    for turn in range(40):
        image = draw(one(shape=1, orientation=turn))[0, 0] / 255
        a, b = columns - 32.5, 32.5 - rows  # right and up
        along = 0.5 * np.arctan2(2 * (image * a * b).sum(), (image * (a * a - b * b)).sum())
        assert abs((along - turn * np.pi / 20 + np.pi / 2) % np.pi - np.pi / 2) < 0.03


def test_all_images_differ_but_for_the_symmetry_of_their_shape():
    for smooth in (False, True):
        made = templates(smooth)
        assert len(np.unique(made.reshape(720, -1), axis=0)) == 6 * (10 + 20 + 40)
        assert not made[..., 0, :].any() and not made[..., :, 0].any()  # no sprite is cut
    assert len(np.unique(templates(True))) > 10
    neighbours = np.concatenate([one(shape=2, scale=0, x=x) for x in range(4)])
    for side in (16, 32, 64):
        assert len(np.unique(draw(neighbours, side).reshape(4, -1), axis=0)) == 4


def test_equal_images_are_in_one_split_and_an_image_keeps_its_split_whatever_else_varies():
    whole, some = opened(), opened(vary="orientation,x,y")
    square = opened(vary="shape,scale,orientation,x,y").split("train").factors
    seen = torch.stack([square[name] for name in FULL], 1)
    turned = seen[(seen[:, 0] == 0) & (seen[:, 2] < 10)][::97].numpy()
    turned[:, 2] += 10  # a quarter of a turn
    assert not held_out(np.insert(turned, 0, 0, axis=1)).any()

    def images(data, name):
        table = data.split(name).x.table
        return set(map(tuple, table[(table[:, 1] == 2) & (table[:, 2] == 5)].tolist()))

    assert images(some, "train") == images(whole, "train") and images(some, "test") == images(whole, "test")
    assert images(some, "test") and not images(some, "test") & images(some, "train")


def test_small_images_are_exact_means_and_colours_are_tints():
    table = np.concatenate([one(shape=2, scale=3, orientation=k, x=k, y=31 - k) for k in range(8)])
    large = draw(table).astype(float)
    for side in (16, 32):
        by = 64 // side
        means = large.reshape(8, 1, side, by, side, by).mean((3, 5))
        assert np.array_equal(draw(table, side), np.floor(means + 0.5).astype(np.uint8))
    data = opened(image_size=32, colours=3, vary="x,y")
    batch = data.split("train").batch(torch.arange(200))
    hues = data.split("train").factors["colour"][:200].long()
    assert data.spec.x.shape == (3, 32, 32) and data.varied == {"colour": 3, "x": 32, "y": 32} and not data.spec.cond
    assert (
        torch.equal(batch["x"].flatten(2).sum(2).argmax(1), hues) and (batch["x"].flatten(2).amax(2) > 0).sum() == 200
    )


def test_settings_decide_the_hash_and_wrong_ones_are_refused():
    assert opened().hash == opened().hash == opened(vary="y,x,orientation,scale,shape").hash
    assert (
        len({opened(**s).hash for s in ({}, {"smooth": True}, {"image_size": 32}, {"vary": "x,y"}, {"colours": 2})})
        == 5
    )
    assert "label" not in opened(unconditional=True).spec.cond and "label" not in opened(vary="x").spec.cond
    for settings, said in (
        ({"vary": "x,size"}, "'size'"),
        ({"vary": "x,x"}, "x,x"),
        ({"vary": ""}, "empty"),
        ({"image_size": 20}, "'20'"),
        ({"colours": 0}, "0"),
    ):
        with pytest.raises(GencliError, match=said):
            opened(**settings)


def test_a_split_keeps_factors_when_it_is_cut():
    data = opened(vary="x,y").split("train")
    part = data.only(np.array([3, 5]))
    assert part.factors["x"].tolist() == [int(data.factors["x"][i]) for i in (3, 5)]
    assert np.array_equal(part.x, data.x[np.array([3, 5])]) and isinstance(data.x, Drawn)
