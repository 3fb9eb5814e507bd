"""`gencli sample dps --operator … --input …` and `sdedit`: what is written, what is said, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell import Shell


def receipt(folder: str) -> dict:
    return json.loads((Path(folder.strip()) / "samples.json").read_text())


def test_a_restoration_is_written_with_its_measurement_and_scores(shell: Shell, runs: Path) -> None:
    args = ["--operator", "deblur", "--operator.width", "0.8", "--noise", "0.1", "--input", "test:0-2", "-n", "2"]
    done = shell.fine("sample", "ddrm", "--steps", "3", *args)
    assert "3 inputs by deblur, with noise 0.1" in done.err and "dB, SSIM" in done.err and "of the noise" in done.err
    told = receipt(done.out)
    assert [item["input"] for item in told["items"]] == ["test:0"] * 2 + ["test:1"] * 2 + ["test:2"] * 2
    made = told["restoration"]
    assert made["operator"] == "deblur" and made["noise"] == 0.1 and len(made["inputs"]) == 3
    assert {"psnr", "ssim", "mean_psnr", "baseline_psnr", "residual"} <= set(made)
    assert told["sampler"]["operator"] == {"name": "deblur", "kernel": "gaussian", "width": 0.8}
    grid = Image.open(Path(done.out.strip()) / "grid.png")
    assert grid.size[0] > grid.size[1], "the original, the measurement and two restorations in each of three rows"


def test_a_measurement_is_restored_as_it_is(shell: Shell, runs: Path) -> None:
    Image.fromarray(np.full((8, 8), 90, np.uint8)).save("blurred.png")
    done = shell.fine("sample", "pnp", "--operator", "deblur", "--input", "blurred.png", "--measured", "-n", "1")
    assert "as they are" in done.err and "residual" in done.err and "dB" not in done.err


def test_what_draws_nothing_makes_one_restoration_of_each_input_and_says_so(shell: Shell, runs: Path) -> None:
    done = shell.fine("sample", "pnp", "--steps", "3", "--input", "test:0-1", "-n", "4", "--class", "3,5")
    assert "pnp makes the same of every seed" in done.err and "the mean of" not in done.err
    assert [(item["input"], item["label"]) for item in receipt(done.out)["items"]] == [("test:0", 3), ("test:1", 3)]


def test_an_image_is_edited_from_part_of_the_way(shell: Shell, runs: Path) -> None:
    pixels = (np.arange(64) % 17 * 255 / 16).round().reshape(8, 8).astype(np.uint8)  # the 17 greys of digits
    Image.fromarray(pixels).save("strokes.png")
    same = shell.fine(
        "sample", "sdedit", "--strength", "0", "--steps", "4", "--input", "strokes.png", "-n", "1"
    ).out.strip()
    assert np.array_equal(np.asarray(Image.open(f"{same}/{receipt(same)['items'][0]['file']}")), pixels)
    args = ["--keep", "top-half", "--input", "strokes.png", "-n", "2", "--steps", "4"]
    for sampler in ("sdedit", "repaint"):
        told = shell.fine("sample", sampler, *args).out.strip()
        for item in receipt(told)["items"]:
            made = np.asarray(Image.open(f"{told}/{item['file']}"))
            assert np.array_equal(made[:4], pixels[:4]) and not np.array_equal(made[4:], pixels[4:])


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["dps"], ["dps restores images and was given none", "--operator"]),
        (
            ["dps", "--input", "test:0", "--keep", "top-half"],
            ["--keep is not for sampler dps", "--operator.mask top-half"],
        ),
        (["ddrm", "--input", "test:0", "--operator", "phase-retrieval"], ["needs a linear operator"]),
        (["ddrm", "--input", "test:0", "--operator", "colourise"], ["needs images of 3 channels"]),
        (["ddrm", "--input", "test:0", "--operator", "super-resolution", "--operator.factor", "3"], ["do not fit"]),
        (["classical", "--input", "test:0", "--guidance", "3"], ["guidance 3 means nothing", "asks no model"]),
        (["classical", "--print-timesteps"], ["classical has no noise levels"]),
        (["ddim", "--measured"], ["--measured is for samplers that restore, ddim does not"]),
        (["sdedit", "--steps", "4"], ["sdedit edits images and was given none"]),
        (["repaint", "--input", "test:0", "--steps", "4"], ["repaint was not told what to keep"]),
        (["sdedit", "--strength", "2", "--input", "test:0"], ["strength"]),
        (["ddim", "--input", "test:0", "--keep", "top-half"], ["no tokens to keep", "repaint"]),
    ],
)
def test_what_cannot_be_restored_is_one_line(shell: Shell, runs: Path, args: list[str], words: list[str]) -> None:
    shell("sample", *args).fails(*words)


@pytest.mark.parametrize("prior", ["tikhonov", "wavelet", "tv"])
def test_a_classical_prior_restores_without_asking_the_network_and_says_so(
    shell: Shell, runs: Path, prior: str
) -> None:
    args = ["--operator", "deblur", "--input", "test:0-1", "--steps", "20", "--trajectory"]
    done = shell.fine("sample", "classical", "--prior", prior, *args)
    assert "0 network evaluations" in done.err and "classical makes the same of every seed" in done.err
    told = receipt(done.out)
    assert told["network_evaluations"] == 0 and told["guidance"] == 1.0 and told["sampler"]["prior"] == prior
    assert {"psnr", "baseline_psnr"} <= told["restoration"].keys() and len(told["items"]) == 2
