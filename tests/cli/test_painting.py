"""`gencli sample --input …` of a model that paints images from images: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from shell import Shell
from tiny import opened, smoke, trained

EDGES = {"name": "edges", "image_size": 8}


@pytest.fixture(scope="module")
def painter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("painter"), smoke("pix2pix"), name="painter")


def made_by(shell: Shell, *args: str) -> tuple[Path, dict[str, Any], list[np.ndarray]]:
    """The folder of samples, its receipt and the images."""
    folder = Path(shell.fine("sample", *args, "-q").out.strip())
    receipt = json.loads((folder / "samples.json").read_text())
    return folder, receipt, [np.asarray(Image.open(folder / item["file"])) for item in receipt["items"]]


def test_files_and_items_are_painted_alike_with_a_receipt(shell: Shell, painter: Path) -> None:
    edges = opened(EDGES).split("test").cond["image"][2, 0].numpy()
    Image.fromarray(edges).save("edges.png")
    run = str(painter)
    folder, receipt, images = made_by(shell, run, "--input", "edges.png", "-n", "2", "--seed", "5")
    assert folder.name == "prior-painted-5" and len(images) == 2 and not np.array_equal(*images)
    assert [item["input"] for item in receipt["items"]] == ["edges.png"] * 2
    assert receipt["painted"]["condition"] == "image" and len(receipt["painted"]["inputs"]) == 1
    assert Image.open(folder / "grid.png").size == (3 * 34 + 2, 34 + 2), "the edges and two paintings"
    _, told, same = made_by(shell, run, "--input", "test:1-2", "-n", "2", "--seed", "5")
    assert [item["input"] for item in told["items"]] == ["test:1", "test:1", "test:2", "test:2"]
    assert all(np.array_equal(a, b) for a, b in zip(images, same[2:], strict=True))


def test_without_an_input_held_out_edges_are_painted(shell: Shell, painter: Path) -> None:
    _, receipt, images = made_by(shell, str(painter), "-n", "3", "--seed", "1")
    assert len(images) == 3 and "painted" not in receipt
    for seed, image in zip((1, 2, 3), images, strict=True):
        args = ["--input", f"test:{seed}", "-n", "1", "--seed", str(seed)]
        assert np.array_equal(made_by(shell, str(painter), *args)[2][0], image)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--input", "wide.png"], ["16×8", "--fit"]),
        (["--input", "colour.png"], ["has colours"]),
        (["--input", "none.png"], ["none.png"]),
        (["--input", "test:0", "--keep", "top-half"], ["pix2pix has no tokens"]),
    ],
)
def test_what_cannot_be_painted_is_one_line(shell: Shell, painter: Path, args: list[str], words: list[str]) -> None:
    Image.fromarray(np.zeros((8, 16), np.uint8)).save("wide.png")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save("colour.png")
    shell("sample", str(painter), *args).fails(*words)


def test_the_flags_of_a_folder_of_pairs_are_those_of_pairs(shell: Shell, painter: Path) -> None:
    rng = np.random.default_rng(0)
    Path("mine").mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 16), dtype=np.uint8)).save(f"mine/{i}.png")
    args = ["--smoke", "--data", "./mine", "--image-size", "8", "--direction", "b-to-a", "--name", "turned", "-q"]
    folder = Path(shell.fine("train", "pix2pix", *args).out.strip())
    data = json.loads((folder / "config.json").read_text())["recipe"]["data"]
    assert (data["name"], data["direction"]) == ("pairs", "b-to-a")
    assert torch.is_tensor(opened(data).split("train").cond["image"])
