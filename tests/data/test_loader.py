"""Order and augmentation: pure functions of seed, step and row."""

import numpy as np
import pytest
import torch

from gencli.core import Rng
from gencli.data._augment import augment
from gencli.data._loader import indices, order
from gencli.errors import GencliError


@pytest.mark.parametrize(("n", "batch"), [(10, 4), (7, 7), (3, 8), (64, 1), (50, 33)])
def test_every_item_comes_once_an_epoch_across_batch_borders(n, batch):
    steps = -(-5 * n // batch)
    stream = torch.cat([indices(step, batch, n, seed=3) for step in range(steps)])
    assert all(len(indices(step, batch, n, seed=3)) == batch for step in range(steps))
    for epoch in range(5):
        assert sorted(stream[epoch * n : (epoch + 1) * n].tolist()) == list(range(n))
        assert stream[epoch * n : (epoch + 1) * n].equal(order(3, epoch, n))


def test_a_step_is_the_same_from_any_starting_point_and_after_the_caller_changes_its_copy():
    first = indices(1000, 32, 100, seed=1)
    order(1, 320, 100).zero_()
    assert indices(1000, 32, 100, seed=1).equal(first)


def test_epochs_and_seeds_give_different_orders():
    assert not order(0, 0, 100).equal(order(0, 1, 100))
    assert not order(0, 0, 100).equal(order(1, 0, 100))
    assert not order(0, 1, 100).equal(order(1, 0, 100))


def ramp(n=16, height=5, width=6, channels=3):
    size = n * channels * height * width
    return torch.from_numpy(np.random.default_rng(0).permutation(size).reshape(n, channels, height, width) % 256).byte()


def reference(image, dy, dx, mirror):
    """Pad with the border, cut out, turn: another way to the same image."""
    _, height, width = image.shape
    padded = np.pad(image, ((0, 0), (9, 9), (9, 9)), mode="edge")
    cut = padded[:, 9 - dy : 9 - dy + height, 9 - dx : 9 - dx + width]
    return cut[:, :, ::-1] if mirror else cut


@pytest.mark.parametrize("flip", [False, True])
def test_augmented_images_are_shifts_with_the_border_repeated(flip):
    x = ramp(64)
    made = augment({"x": x, "label": torch.arange(64)}, 2, flip, Rng.batch("a", total=64))
    assert made["x"].dtype == torch.uint8 and made["label"].equal(torch.arange(64))
    seen = set()
    for before, after in zip(x.numpy(), made["x"].numpy(), strict=True):
        options = [(dy, dx, m) for dy in range(-2, 3) for dx in range(-2, 3) for m in {False, flip}]
        fits = [o for o in options if np.array_equal(reference(before, *o), after)]
        assert len(fits) == 1, fits
        seen.add(fits[0])
    assert len(seen) > 15 and {m for *_, m in seen} == {False, flip}
    assert {dy for dy, *_ in seen} == {dx for _, dx, _ in seen} == {-2, -1, 0, 1, 2}


def test_shifts_and_flips_are_uniform():
    x = torch.zeros(20000, 1, 9, 9, dtype=torch.uint8)
    x[:, :, 4, 4] = 1
    x[:, :, 4, 5] = 2
    made = augment({"x": x}, 1, True, Rng.batch("b", total=20000))["x"]
    place = (made[:, 0] == 1).flatten(1).float().argmax(1)
    shares = torch.bincount(place[place >= 0], minlength=81).float() / 20000
    rows = shares.reshape(9, 9).sum(1)[3:6]
    assert (rows - 1 / 3).abs().max() < 0.015
    mirrored = ((made[:, 0, :, :-1] == 2) & (made[:, 0, :, 1:] == 1)).flatten(1).any(1).float().mean()
    assert abs(float(mirrored) - 0.5) < 0.015


def test_augmentation_does_not_depend_on_the_split_into_micro_batches():
    x = ramp(12)
    whole = augment({"x": x}, 2, True, Rng.batch("s", 5, total=12))["x"]
    parts = [
        augment({"x": x[r.start : r.stop]}, 2, True, Rng.batch("s", 5, total=12, rows=r))["x"]
        for r in (range(0, 5), range(5, 6), range(6, 12))
    ]
    assert torch.cat(parts).equal(whole)
    assert not augment({"x": x}, 2, True, Rng.batch("s", 6, total=12))["x"].equal(whole)


def test_without_shift_and_flip_nothing_happens_and_points_are_refused():
    batch = {"x": torch.zeros(4, 2)}
    assert augment(batch, 0, False, Rng.batch("a", total=4)) is batch
    with pytest.raises(GencliError, match=r"shape \(2,\)"):
        augment(batch, 1, False, Rng.batch("a", total=4))
