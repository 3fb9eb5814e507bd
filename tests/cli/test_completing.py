"""`gencli sample --input … --keep …` and `--rejection`: what is written, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shell import Shell
from tiny import DIGITS, opened, trained

CLASSIFIER = {
    "model": {"name": "classifier", "net": {"name": "resnet", "width": 4, "blocks": 1, "stages": 2}},
    "data": DIGITS,
    "train": {"steps": 20, "batch_size": 32, "lr": 0.01},
}


def made_by(shell: Shell, *args: str) -> tuple[Path, dict[str, Any], list[np.ndarray]]:
    """The folder of samples, its receipt and the images."""
    folder = Path(shell.fine("sample", *args, "-q").out.strip())
    receipt = json.loads((folder / "samples.json").read_text())
    return folder, receipt, [np.asarray(Image.open(folder / item["file"])) for item in receipt["items"]]


@pytest.mark.parametrize("run", ["pixelcnn-digits", "gated-pixelcnn-digits"])
def test_held_out_items_are_completed_with_a_receipt(shell: Shell, runs: Path, run: str) -> None:
    folder, receipt, images = made_by(shell, run, "--input", "test:3-4", "--keep", "top-half", "-n", "2", "--seed", "5")
    items = opened(DIGITS).split("test")
    assert folder.name == "next-token-top-half-5" and len(images) == 4
    for image, number in zip(images, (3, 3, 4, 4), strict=True):
        assert np.array_equal(image[:4], items.x[number, 0, :4])
    assert any(not np.array_equal(image[4:], items.x[3, 0, 4:]) for image in images)
    told = receipt["completion"]
    assert [one["input"] for one in told["inputs"]] == ["test:3", "test:4"] and told["keep"] == "top-half"
    assert [item["seed"] for item in receipt["items"]] == [5, 6, 5, 6] and receipt["items"][2]["input"] == "test:4"
    labels = [int(items.cond["label"][i]) for i in (3, 3, 4, 4)]
    assert [item.get("label") for item in receipt["items"]] == (labels if run[0] == "g" else [None] * 4)
    size = Image.open(folder / "grid.png").size
    assert size == (4 * 34 + 2, 2 * 34 + 2), "two rows of original, masked and two completions"


def test_a_file_and_a_mask_and_a_class(shell: Shell, runs: Path) -> None:
    pixels = np.full((8, 8), 120, dtype=np.uint8)
    Image.fromarray(pixels).save("mine.png")
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:, :6] = 255
    Image.fromarray(mask).save("mask.png")
    args = ["gated-pixelcnn-digits", "--input", "mine.png", "--keep", "mask.png", "--class", "7", "--trajectory"]
    folder, receipt, images = made_by(shell, *args)
    assert len(images) == 4 and all((image[:, :6] == 120).all() for image in images)
    assert {item["label"] for item in receipt["items"]} == {7} and folder.name == "next-token-mask-0"
    assert (folder / "trajectory.webp").is_file() and (folder / "entropy.webp").is_file()
    page = shell.fine("report", "gated-pixelcnn-digits").out.strip()
    assert "1 input, what is kept (mask.png), and completions" in Path(page).read_text("utf-8")


def test_items_are_completed_without_their_class_when_asked(shell: Shell, runs: Path) -> None:
    args = ["gated-pixelcnn-digits", "--input", "test:0", "--keep", "left-half", "-n", "1"]
    _, receipt, (image,) = made_by(shell, *args, "--class", "none")
    assert "label" not in receipt["items"][0] and "label" not in receipt["completion"]["inputs"][0]
    assert np.array_equal(image[:, :4], opened(DIGITS).split("test").x[0, 0, :, :4])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["pixelcnn-digits", "--input", "test:0"], ["--keep"]),
        (["pixelcnn-digits", "--keep", "top-half"], ["--input"]),
        (["pixelcnn-digits", "--input", "test:0", "--keep", "upper"], ["upper", "top-half"]),
        (["pixelcnn-digits", "--input", "test:0", "--keep", "top-half", "--fit", "squeeze"], ["squeeze", "crop"]),
        (["pixelcnn-digits", "--fit", "crop"], ["--fit", "--input"]),
        (
            ["ddpm-digits", "--input", "test:0", "--keep", "top-half"],
            ["ddpm has no tokens", "gated-pixelcnn", "maskgit"],
        ),
        (["vqvae-digits", "--input", "test:0", "--keep", "top-half"], ["no prior"]),
        (["pixelcnn-digits", "--input", "test:0", "--keep", "top-half", "--class", "3"], ["without classes"]),
        (["pixelcnn-digits", "--rejection-share", "0.5"], ["--rejection"]),
        (["pixelcnn-digits", "--rejection", "vqvae-digits"], ["without classes"]),
        (["ddpm-digits", "--rejection", "vqvae-digits"], ["no classifier"]),
        (["ddpm-digits", "--rejection", "vqvae-digits", "--rejection-share", "0"], ["--rejection-share is 0"]),
        (["ddpm-digits", "--rejection", "x", "--input", "test:0", "--keep", "top-half"], ["--input"]),
        (["pixelcnn-digits", "--attention"], ["attention", "gpt"]),
    ],
)
def test_what_makes_no_sense_is_one_line(shell: Shell, runs: Path, args: list[str], words: list[str]) -> None:
    shell("sample", *args).fails(*words)


def test_the_surest_of_more_candidates_are_kept_by_their_seeds(shell: Shell, runs: Path) -> None:
    judge = trained(runs, CLASSIFIER)
    args = ["ddpm-digits", "--steps", "1", "--class", "2,3", "--rejection", judge.name]
    _, plain, all_of_them = made_by(shell, *args[:-2], "-n", "16")
    _, receipt, images = made_by(shell, *args, "-n", "4", "--rejection-share", "0.25")
    assert len(images) == 4 and receipt["rejection"]["candidates"] == 16
    labels = [item["label"] for item in receipt["items"]]
    seeds = [item["seed"] for item in receipt["items"]]
    assert sorted(labels) == [2, 2, 3, 3] and seeds == sorted(seeds) and max(seeds) < 16
    for seed, image in zip(seeds, images, strict=True):
        assert np.abs(image.astype(int) - all_of_them[seed]).max() <= 1, "the same image as without rejection"
    mean = receipt["rejection"]["mean_probability"]
    kept = [item["probability"] for item in receipt["items"]]
    assert mean["kept"] >= mean["candidates"] and np.mean(kept) == pytest.approx(mean["kept"], abs=1e-5)
    _, named, _ = made_by(shell, *args, "--seeds", "0-15", "--rejection-share", "0.25")
    assert [item["seed"] for item in named["items"]] == seeds, "--seeds names the candidates"
    assert "rejection" not in plain
