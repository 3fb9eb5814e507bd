"""A few images of one class: which ones, their class among all, a folder of one's own, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import opened

from gencli.data import open_table
from gencli.errors import GencliError


def test_they_are_the_first_of_their_class_and_keep_its_number() -> None:
    few, digits = opened({"name": "few", "label": "3", "items": 7}), opened({"name": "digits"})
    assert few.spec == digits.spec and few.name == "digits-few"
    part, whole = few.split("train"), digits.split("train")
    threes = (whole.cond["label"] == 3).nonzero()[:7, 0]
    assert np.array_equal(part.x, whole.x[threes.numpy()]) and part.cond["label"].tolist() == [3] * 7
    assert part.ids == [whole.ids[i] for i in threes]
    test = few.split("test")
    assert len(test) == int((digits.split("test").cond["label"] == 3).sum()) and set(test.cond["label"].tolist()) == {3}


def test_inverted_they_are_the_negative() -> None:
    plain, negative = (
        opened({"name": "few", "label": "3", "invert": invert}).split("train") for invert in (False, True)
    )
    assert np.array_equal(negative.x, 255 - plain.x) and len(plain) == 20


def test_without_labels_they_are_the_first_whatever_they_show() -> None:
    part = opened({"name": "few", "unconditional": True, "items": 5})
    assert not part.spec.cond and np.array_equal(part.split("train").x, opened({"name": "digits"}).split("train").x[:5])


def test_a_folder_is_of_one_of_the_classes_that_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "sub").mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "sub" / f"{i}.png")
    table = {"name": "few", "of": "folder", "path": str(tmp_path), "image_size": "8"}
    data = open_table({**table, "label": "dog", "classes": "cat, dog"})
    assert data.spec.cond["label"].names == ("cat", "dog") and data.spec.x.shape == (3, 8, 8)
    part = data.split("train")
    assert len(part) + len(data.split("test")) == 12 and torch.equal(part.cond["label"], torch.ones(len(part)).long())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({}, "of which class is not said"),
        ({"label": "x"}, "unknown class 'x'"),
        ({"label": "dog", "classes": "cat,bird"}, "unknown class 'dog'"),
        ({"of": "toy2d", "label": "3"}, "'toy2d' is no set of images"),
        ({"of": "edges", "label": "3"}, "'edges' is no set of images"),
    ],
)
def test_what_is_no_class_or_no_set_of_images_is_refused(table: dict[str, str], words: str) -> None:
    with pytest.raises(GencliError, match=words):
        open_table({"name": "few", **table}).spec  # noqa: B018
