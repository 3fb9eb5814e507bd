"""Images and the same ones reduced: Pillow's filter, the other set's splits, a folder of one's own, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import opened

from gencli.core import Field
from gencli.data import open_table
from gencli.errors import GencliError


def test_small_images_are_pillows_and_go_with_the_items_of_the_other_set() -> None:
    data, digits = opened({"name": "reduced", "factor": 4}), opened({"name": "digits"})
    part = data.split("test")
    assert np.array_equal(part.x, digits.split("test").x) and part.ids == digits.split("test").ids
    assert data.name == "digits-x4" and data.resampled and data.spec.x == digits.spec.x
    assert list(data.spec.cond) == ["image", "label"]
    assert data.spec.cond["image"] == Field("image", (1, 4, 4), vocab=256)
    for i in range(5):
        small = Image.fromarray(part.x[i, 0]).resize((4, 4), Image.Resampling.BICUBIC)
        assert np.array_equal(part.cond["image"][i, 0].numpy(), np.asarray(small))
    alone = opened({"name": "reduced", "factor": 2, "image_size": "8", "unconditional": True})
    assert list(alone.spec.cond) == ["image"] and alone.spec.x.shape == (1, 8, 8)
    assert alone.hash != opened({"name": "reduced", "factor": 4, "image_size": "8", "unconditional": True}).hash


def test_a_folder_of_ones_own_is_reduced_and_need_not_be_square(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 16, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    table = {"name": "reduced", "of": "folder", "path": str(tmp_path), "image_size": "16x8", "factor": 2}
    data = open_table(table)
    part = data.split("train")
    assert data.spec.x.shape == (3, 8, 16) and tuple(part.cond["image"].shape[1:]) == (3, 4, 8)
    small = Image.fromarray(part.x[0].transpose(1, 2, 0)).resize((8, 4), Image.Resampling.BICUBIC)
    assert torch.equal(part.cond["image"][0], torch.from_numpy(np.asarray(small).transpose(2, 0, 1).copy()))
    assert any("16×8" in note for note in data.notes)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"of": "toy2d"}, "images of 'toy2d' cannot be reduced"),
        ({"of": "edges"}, "images of 'edges' cannot be reduced"),
        ({"factor": 3}, "images of 16×16 pixels cannot be made 3 times smaller"),
        ({"path": "photos"}, "data set 'digits' has no setting path"),
        ({"image_size": "16x8"}, "image_size is '16x8'"),
    ],
)
def test_what_cannot_be_reduced_is_named(settings: dict[str, object], words: str) -> None:
    with pytest.raises(GencliError, match=words):
        _ = open_table({"name": "reduced", **settings}).spec
