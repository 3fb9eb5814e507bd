"""Writers: what is drawn where, what is written under which name."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image, features

from gencli.errors import GencliError
from gencli.report.curves import curve, save_curve, smooth
from gencli.report.kinds import image, points, writer


def batch(n, channels=3, height=8, width=8, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, channels, height, width), dtype=np.uint8)


def cell(page, i, columns, side, scale):
    """The i-th image of a grid, at its native size again."""
    step = side * scale + 2
    left, top = 2 + i % columns * step, 2 + i // columns * step
    box = page.crop((left, top, left + side * scale, top + side * scale))
    return np.asarray(box.resize((side, side), Image.Resampling.NEAREST)), np.asarray(box)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_of_images_is_read_back_as_they_are(tmp_path, channels):
    from gencli.evaluation.sources import Samples

    images = batch(300, channels, width=6)
    path = image.save_array(tmp_path / "samples.npz", torch.from_numpy(images), torch.arange(300) % 7)
    read = Samples([path])
    assert torch.equal(torch.cat(list(read.items())), torch.from_numpy(images))
    with np.load(path, allow_pickle=False) as held:
        assert held["arr_0"].shape == (300, 8, 6, channels) and held["arr_1"].tolist() == [i % 7 for i in range(300)]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_shows_every_pixel_of_every_image_in_order(channels):
    images = batch(7, channels)
    page = image.grid(images)
    assert page.size == (3 * 34 + 2, 3 * 34 + 2)  # 8 pixels, four times as large, 2 between
    for i in range(7):
        small, large = cell(page, i, 3, 8, 4)
        assert np.array_equal(small.transpose(2, 0, 1), np.broadcast_to(images[i], (3, 8, 8)))
        assert np.array_equal(large, small.repeat(4, 0).repeat(4, 1))
    assert (cell(page, 8, 3, 8, 4)[0] == 255).all()


@pytest.mark.parametrize(("side", "drawn"), [(8, 32), (16, 32), (28, 56), (32, 32), (64, 64), (1, 32)])
def test_images_are_drawn_at_least_32_pixels_wide(side, drawn):
    assert image.grid(batch(1, 3, side, side)).size == (drawn + 4, drawn + 4)


def test_columns_and_scale_are_kept_and_tensors_are_taken():
    page = image.grid(torch.from_numpy(batch(6)), columns=6, scale=1)
    assert page.size == (6 * 10 + 2, 12)
    assert image.grid(batch(2), columns=9, scale=1).size == (22, 12)


def test_what_is_no_uint8_image_is_a_programmers_error():
    for wrong in (batch(2).astype(np.float32), batch(2)[0], batch(0), batch(1, 2)):
        with pytest.raises(AssertionError):
            image.grid(wrong)


def test_items_are_written_without_loss_under_their_names(tmp_path):
    images = batch(3, 1)
    paths = image.save_items(tmp_path / "out", images, ["a", "b", "写"])
    assert [path.name for path in paths] == ["a.png", "b.png", "写.png"]
    for path, expected in zip(paths, images, strict=True):
        assert np.array_equal(np.asarray(Image.open(path)), expected[0])
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_a_grid_is_saved_by_suffix(tmp_path):
    images = batch(4)
    expected = np.asarray(image.grid(images))
    for name in ("a.png", "b.webp"):
        assert np.array_equal(np.asarray(Image.open(image.save_grid(tmp_path / name, images)).convert("RGB")), expected)
    with pytest.raises(GencliError, match=r"cannot draw to a\.tiff"):
        image.save_grid(tmp_path / "a.tiff", images)


@pytest.mark.parametrize("name", ["a.webp", "a.gif"])
def test_an_animation_has_every_frame_loops_and_rests_on_the_last(tmp_path, name):
    frames = [np.full((2, 1, 8, 8), value, np.uint8) for value in (0, 80, 160, 255)]
    path = image.save_animation(tmp_path / name, frames, fps=10)
    with Image.open(path) as moving:
        assert moving.n_frames == 4 and moving.info["loop"] == 0
        values, times = [], []
        for i in range(4):
            moving.seek(i)
            moving.load()
            values.append(moving.convert("RGB").getpixel((10, 10))[0])
            times.append(moving.info["duration"])
    assert np.abs(np.array(values) - [0, 80, 160, 255]).max() <= 4
    assert times == [100, 100, 100, 1500]


def test_without_webp_an_animation_becomes_a_gif(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "check", lambda name: False)
    path = image.save_animation(tmp_path / "a.webp", [batch(1), batch(1, seed=1)])
    assert path.suffix == ".gif" and Image.open(path).format == "GIF"


def test_half_blocks_hold_the_upper_and_lower_pixel():
    pixels = batch(1, 3, 5, 4)[0]
    rows = image.half_blocks(pixels)
    assert len(rows) == 3 and all(len(row) == 4 for row in rows)
    assert rows[1][2] == (tuple(pixels[:, 2, 2]), tuple(pixels[:, 3, 2]))
    assert rows[2][0] == (tuple(pixels[:, 4, 0]), None)
    assert len(image.half_blocks(Image.new("L", (100, 60), 9), width=50)) == 15
    assert image.half_blocks(Image.new("L", (2, 2), 9))[0][0] == ((9, 9, 9), (9, 9, 9))


def test_a_contact_sheet_has_a_caption_under_every_image():
    images = np.full((4, 3, 16, 16), 128, np.uint8)
    sheet = image.contact_sheet(images, ["cat", "", "very long name that cannot fit", "кот"])
    plain = image.grid(images)
    assert sheet.size[0] == plain.size[0] and sheet.size[1] == plain.size[1] + 2 * 14
    pixels = np.asarray(sheet.convert("L"))
    inked = [(pixels[34 + 48 * r : 48 + 48 * r, 2 + 34 * c : 34 + 34 * c] < 128).any() for r in (0, 1) for c in (0, 1)]
    assert inked == [True, False, True, True]
    assert (pixels[:, -2:] == 255).all()  # the long name stays in its column
    with pytest.raises(AssertionError, match="1 captions for 4 images"):
        image.contact_sheet(images, ["a"])


# ------------------------------------------------------------------------------------------------------------------ points


def test_points_are_drawn_where_they_are():
    page = np.asarray(points.grid(np.array([[0.5, 0.5], [-0.5, -0.5]]), extent=(-1, 1, -1, 1), size=200)).astype(int)
    blue = (page[:, :, 2] - page[:, :, 0]) > 60
    rows, columns = np.nonzero(blue)
    assert {(r // 100, c // 100) for r, c in zip(rows, columns, strict=True)} == {(0, 1), (1, 0)}
    assert blue[50, 150] and blue[150, 50]


def test_thick_places_are_darker_and_the_default_view_holds_nearly_all():
    cloud = np.random.default_rng(0).normal([3, -2], size=(5000, 2))
    page = np.asarray(points.grid(torch.from_numpy(cloud))).astype(int).sum(2)
    middle, edge = page[172:212, 172:212].mean(), page[20:60, 172:212].mean()
    assert middle < edge - 60
    left, right, bottom, top = points.view(cloud)
    inside = (cloud[:, 0] > left) & (cloud[:, 0] < right) & (cloud[:, 1] > bottom) & (cloud[:, 1] < top)
    assert inside.mean() > 0.99 and right - left == pytest.approx(top - bottom)


def test_points_that_are_not_finite_are_told_and_do_not_spoil_the_view():
    cloud = np.random.default_rng(0).normal(size=(100, 2))
    spoilt = np.concatenate([cloud, [[np.nan, 0], [np.inf, 1]]])
    assert points.view(spoilt) == points.view(cloud)
    assert not np.array_equal(np.asarray(points.grid(spoilt))[:16], np.asarray(points.grid(cloud))[:16])
    points.grid(np.full((3, 2), np.nan))
    points.grid(np.zeros((1, 2)))


def test_points_are_saved_as_array_and_table(tmp_path):
    cloud = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    paths = points.save_items(tmp_path, cloud, [f"{i:05d}" for i in range(5)])
    assert len(paths) == 5 and {path.name for path in paths} == {"points.csv"}
    assert np.array_equal(np.load(tmp_path / "points.npy"), cloud)
    with (tmp_path / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert (
        rows[2]["name"] == "00002"
        and np.float32(rows[2]["x"]) == cloud[2, 0]
        and np.float32(rows[2]["y"]) == cloud[2, 1]
    )


def test_points_move_in_one_view(tmp_path):
    cloud = np.random.default_rng(0).normal(size=(50, 2))
    path = points.save_animation(tmp_path / "a.webp", [cloud * 40, cloud * 5, cloud])
    with Image.open(path) as moving:
        assert moving.n_frames == 3
    assert points.save_grid(tmp_path / "a.png", cloud).exists()


def test_every_writer_has_the_same_functions():
    for kind in ("image", "points"):
        module = writer(kind)
        functions = ("grid", "panel", "save_grid", "save_items", "save_animation", "save_denoising")
        assert all(callable(getattr(module, name)) for name in functions) and module.MOVING > 0
    with pytest.raises(GencliError, match="kind 'smell'") as caught:
        writer("smell")
    assert caught.value.hint == "kinds that can be drawn: image, points"


# ------------------------------------------------------------------------------------------------------------------ curves


def coloured(png):
    import io

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
    return ((pixels.max(2) - pixels.min(2)) > 60), pixels


@pytest.mark.parametrize("n", [1, 2, 30, 3000])
def test_a_curve_is_seen_however_short_the_run(n):
    rows = [{"step": i, "loss": 1 / (i + 1)} for i in range(n)]
    ink, pixels = coloured(curve(rows))
    assert ink.sum() > 30 and pixels.mean() > 200
    assert n > 1 or ink[:300, 100:550].sum() > 10  # a dot, apart from the legend


def test_a_run_without_a_finite_value_says_so():
    blank, none = curve([]), curve([{"step": 1, "loss": float("nan")}])
    assert blank == none and coloured(blank)[1].min() < 100


def test_the_first_value_is_drawn_left_and_low_values_low():
    rows = [{"step": i, "loss": 1.0 if i < 50 else 0.5} for i in range(100)]
    ink, _ = coloured(curve(rows))
    y, x = np.nonzero(ink[:310, 60:690])
    assert y[x < 250].mean() < y[x > 400].mean() - 50


def test_terms_are_told_apart_and_missing_ones_left_out(tmp_path):
    rows = [{"step": i, "loss": 1 + i, "kl": 2.0, "word": "x"} for i in range(10)]
    path = save_curve(tmp_path / "loss.png", json.loads(json.dumps(rows)), keys=("loss", "kl", "gone", "word"))
    _, pixels = coloured(path.read_bytes())
    colours = {(0, 114, 178), (213, 94, 0)}
    assert colours <= set(map(tuple, pixels.reshape(-1, 3).tolist()))


def test_the_running_mean_is_exact_inside_and_at_the_ends():
    values = np.random.default_rng(0).normal(size=100)
    expected = [values[max(0, i - 2) : i + 3].mean() for i in range(100)]
    assert np.allclose(smooth(values), expected)
    assert np.array_equal(smooth(np.array([3.0])), [3.0])
