"""What guides on the command line: scales, intervals, a guide, a classifier; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from saved import saved
from shell import Shell, copied
from tiny import table

CLASSIFIER = {"name": "adm-encoder", "width": 8, "mults": [1, 2], "blocks": 1, "attention": [4], "head_width": 8}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs with random weights: two that take classes, one that does not, one in [0, 1], a classifier, one of tokens."""
    place = tmp_path_factory.mktemp("stock") / "checkpoints"
    ddpm = table("ddpm")
    noisy = {**ddpm, "model": {"name": "noisy-classifier", "timesteps": 20, "net": CLASSIFIER}}
    made: dict[str, Any] = {
        "strong": (ddpm, 0.3),
        "weak": (ddpm, 0.1),
        "plain": (table("ddpm", {"data": {"unconditional": True}}), 0.3),
        "unit": ({**ddpm, "codecs": [{"name": "pixels", "range": "0,1"}]}, 0.3),
        "large": (table("ddpm", {"data": {"image_size": 16}}), 0.3),
        "judge": (noisy, 0.3),
        "tokens": (table("pixelcnn"), 0.1),
    }
    for name, (tables, std) in made.items():
        saved(place, tables, std).rename(place / name)
    return place.parent


@pytest.fixture
def folder(stock: Path, shell: Shell, tmp_path: Path) -> Path:
    return copied(stock, tmp_path)


def drawn(shell: Shell, *args: str) -> tuple[dict[str, Any], np.ndarray]:
    """The receipt, and all images."""
    made = Path(shell.fine("sample", "ddim", "--steps", "4", "-n", "5", *args, "-q").out.strip())
    receipt = json.loads((made / "samples.json").read_text())
    return receipt, np.stack([np.asarray(Image.open(path)).astype(int) for path in sorted(made.glob("0*.png"))])


def test_both_names_of_the_scale_mean_the_same(shell: Shell, folder: Path) -> None:
    scale, w = (drawn(shell, "-c", "strong", *flag) for flag in (["--guidance", "2.5"], ["--guidance-w", "1.5"]))
    assert np.array_equal(scale[1], w[1]) and scale[0]["guidance"] == w[0]["guidance"] == 2.5


def test_an_interval_of_all_levels_is_no_interval_and_one_of_none_is_no_guidance(shell: Shell, folder: Path) -> None:
    args = ["-c", "strong", "--guidance", "3"]
    everywhere, plain = drawn(shell, *args)[1], drawn(shell, "-c", "strong", "--guidance", "1")[1]
    receipt, all_levels = drawn(shell, *args, "--guidance-interval", "0,1e6")
    assert np.array_equal(all_levels, everywhere)
    assert receipt["guidance_interval"] == [0.0, 1e6] and receipt["network_evaluations"] == 8
    receipt, none = drawn(shell, *args, "--guidance-interval", "1e6, 1e7")
    assert np.array_equal(none, plain) and receipt["network_evaluations"] == 4
    receipt, some = drawn(shell, *args, "--guidance-interval", "0.3,2")
    assert not np.array_equal(some, plain) and not np.array_equal(some, everywhere)
    assert 4 < receipt["network_evaluations"] < 8, "outside the interval nothing is asked twice"


def test_a_guide_is_moved_away_from_and_named_in_the_receipt(shell: Shell, folder: Path) -> None:
    plain = drawn(shell, "-c", "strong", "--guidance", "1")[1]
    receipt, guided = drawn(shell, "-c", "strong", "--guide", "weak", "--guidance", "2")
    assert not np.array_equal(plain, guided)
    assert receipt["guidance"] == 2.0 and receipt["guide"] == "weak" and len(receipt["guide_weights"]) == 16
    assert receipt["network_evaluations"] == 8
    itself = drawn(shell, "-c", "strong", "--guide", "strong", "--guidance", "2")[1]
    assert np.abs(itself - plain).max() <= 1, "a guide that is as good is no guide"
    assert not np.array_equal(drawn(shell, "-c", "plain", "--guide", "plain", "--guidance", "2")[1], guided)


def test_a_classifier_gives_classes_to_a_run_without_them(shell: Shell, folder: Path) -> None:
    plain, _ = drawn(shell, "-c", "plain")
    assert all("label" not in item for item in plain["items"])
    args = ["-c", "plain", "--classifier", "judge", "--classifier-scale", "30"]
    receipt, threes = drawn(shell, *args, "--class", "3")
    assert [item["label"] for item in receipt["items"]] == [3] * 5
    assert receipt["classifier"] == "judge" and receipt["classifier_scale"] == 30.0 and receipt["guidance"] == 1.0
    assert receipt["network_evaluations"] == 8, "its gradient is counted"
    _, sevens = drawn(shell, *args, "--class", "7")
    assert not np.array_equal(threes, sevens)
    receipt, _ = drawn(shell, *args)
    assert [item["label"] for item in receipt["items"]] == list(range(5)), "all in turn"


def test_a_classifier_works_on_top_of_a_scale(shell: Shell, folder: Path) -> None:
    args = ["-c", "strong", "--class", "2", "--guidance", "2"]
    (_, without), (receipt, with_) = drawn(shell, *args), drawn(shell, *args, "--classifier", "judge")
    assert not np.array_equal(without, with_) and receipt["network_evaluations"] == 12


@pytest.mark.parametrize(
    "flags",
    [
        ["-c", "strong", "--guidance", "3", "--guidance-interval", "0.3,2"],
        ["-c", "strong", "--guide", "weak", "--guidance", "2"],
        ["-c", "plain", "--classifier", "judge", "--class", "1,2,3"],
    ],
    ids=lambda flags: flags[2],
)
def test_guided_images_are_the_same_whatever_the_batch(shell: Shell, folder: Path, flags: list[str]) -> None:
    whole = drawn(shell, *flags)[1]
    assert np.abs(drawn(shell, *flags, "--batch-size", "2")[1] - whole).max() <= 1
    exact = drawn(shell, *flags, "--exact", "--batch-size", "4")[1]
    made = Path(
        shell.fine("sample", "ddim", "--steps", "4", "-n", "2", "--exact", "--batch-size", "4", *flags, "-q").out
    )
    assert all(
        np.array_equal(np.asarray(Image.open(Path(str(made).strip()) / f"0000{i}.png")), exact[i]) for i in range(2)
    )


def test_eval_guides_too_and_says_so_in_its_receipt(shell: Shell, folder: Path) -> None:
    args = ["eval", "fid", "--features", "pixels", "-n", "20", "--steps", "2", "--sampler", "ddim", "--json"]
    receipts = [
        shell.fine(*args, *flags).document["results"][0]["receipt"]
        for flags in (
            ["-c", "strong", "--guidance-w", "1", "--guidance-interval", "0.1,3"],
            ["-c", "strong", "--guide", "weak", "--guidance", "2"],
            ["-c", "plain", "--classifier", "judge"],
        )
    ]
    assert receipts[0]["guidance"] == 2.0 and receipts[0]["guidance_interval"] == [0.1, 3.0]
    assert receipts[1]["guide"] == "weak" and receipts[2]["classifier"] == "judge"
    assert receipts[2]["labels"] == "balanced"


STRONG = ["sample", "ddim", "-c", "strong", "--steps", "2"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([*STRONG, "--guidance", "3", "--guidance-interval", "5,0.2"], ["5,0.2", "empty", "0.2,5"]),
        ([*STRONG, "--guidance", "3", "--guidance-interval", "5"], ["--guidance-interval is '5'", "0.2,5"]),
        ([*STRONG, "--guidance", "3", "--guidance-interval", "1,2,3"], ["'1,2,3'"]),
        ([*STRONG, "--guidance", "3", "--guidance-interval", "low,high"], ["'low,high'"]),
        ([*STRONG, "--guidance", "3", "--guidance-interval=-1,2"], ["begins at -1"]),
        ([*STRONG, "--guidance", "1", "--guidance-interval", "1,2"], ["1,2", "nothing to limit", "--guidance 2"]),
        ([*STRONG, "--guidance", "nan"], ["--guidance is nan"]),
        ([*STRONG, "--guidance", "2", "--guidance-w", "1"], ["--guidance 2", "--guidance-w 1"]),
        ([*STRONG, "--guide", "nobody", "--guidance", "2"], ["'nobody'", "checkpoints"]),
        ([*STRONG, "--guide", "weak", "--guidance", "1"], ["weak", "scale 1", "--guidance 2"]),
        ([*STRONG, "--guide", "tokens", "--guidance", "2"], ["tokens", "no denoiser"]),
        ([*STRONG, "--guide", "judge", "--guidance", "2"], ["judge", "no denoiser"]),
        ([*STRONG, "--guide", "large", "--guidance", "2"], ["large", "(1, 16, 16)", "(1, 8, 8)"]),
        ([*STRONG, "--guide", "unit", "--guidance", "2"], ["unit", "codecs", "(0.0, 1.0)", "(-1.0, 1.0)"]),
        ([*STRONG, "--classifier", "weak"], ["weak", "no classifier", "noisy-classifier"]),
        ([*STRONG, "--classifier-scale", "2"], ["--classifier-scale 2", "--classifier RUN"]),
        (["sample", "large", "--classifier", "judge"], ["judge", "(1, 16, 16)"]),
        (["sample", "plain", "--guidance", "2"], ["guidance 2", "plain"]),
        (["sample", "plain", "--class", "3"], ["plain", "without classes", "--classifier"]),
        (["sample", "plain", "--classifier", "judge", "--class", "10"], ["class 10", "0 to 9"]),
        (["sample", "tokens", "--guidance-interval", "1,2"], ["guidance-interval 1,2", "scale is 1"]),
        (["sample", "tokens", "--classifier", "judge"], ["tokens", "no noise levels"]),
        (["sample", "judge"], ["judge", "NoisyClassifier"]),
        (["eval", "fid", "-c", "strong", "--guidance-interval", "3,1", "--guidance", "2"], ["3,1", "empty"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else v,
)
def test_what_cannot_guide_is_refused_with_the_reason(
    shell: Shell, folder: Path, args: list[str], words: list[str]
) -> None:
    shell(*args).fails(*words)
    assert not Path("samples").exists(), "nothing is begun"


def test_a_guide_of_another_meaning_is_refused(shell: Shell, folder: Path) -> None:
    flow = table("ddpm")
    flow["model"] = {"name": "flow-matching", "coupling": "optimal", "net": flow["model"]["net"]}
    saved(folder / "checkpoints", flow).rename(folder / "checkpoints" / "flow")
    done = shell(*STRONG, "--guide", "flow", "--guidance", "2")
    done.fails("flow", "transport", "mean")


# ------------------------------------------------------------------------------------------------------ seeing the levels


def test_the_timesteps_that_would_be_used_are_printed_and_nothing_is_drawn(shell: Shell, folder: Path) -> None:
    done = shell.fine("sample", "ddim", "-c", "strong", "--steps", "4", "--print-timesteps")
    header, *rows = [line.split("\t") for line in done.out.splitlines()]
    assert header == ["step", "evaluation", "network is told", "sigma", "alpha bar", "log SNR"]
    assert [row[0] for row in rows] == ["1", "2", "3", "4"] and [row[2] for row in rows] == ["19", "14", "9", "4"]
    for _, _, _, sigma, kept, snr in rows:
        assert float(kept) == pytest.approx(1 / (1 + float(sigma) ** 2), rel=1e-4)
        assert float(snr) == pytest.approx(-2 * np.log(float(sigma)), abs=1e-3)
    assert done.err.splitlines()[-1] == "next: gencli sample ddim -c strong --steps 4"
    assert not Path("samples").exists()
    document = shell.fine("sample", "ddim", "-c", "strong", "--steps", "4", "--print-timesteps", "--json").document
    assert [call["told"] for call in document["timesteps"]] == [19, 14, 9, 4] and document["sampler"] == "ddim"


def test_every_evaluation_of_a_step_has_its_line(shell: Shell, folder: Path) -> None:
    done = shell.fine("sample", "heun", "-c", "strong", "--steps", "3", "--print-timesteps")
    rows = [line.split("\t") for line in done.out.splitlines()[1:]]
    assert [row[0] for row in rows] == ["1", "1", "2", "2", "3"] and [row[1] for row in rows] == list("12345")
    assert rows[1][3] == rows[2][3] and rows[3][3] == rows[4][3], "a step ends where the next begins"
    shell("sample", "tokens", "--print-timesteps").fails("next-token", "noise levels")


def test_a_trajectory_has_the_noisy_images_left_and_ends_in_the_samples(shell: Shell, folder: Path) -> None:
    made = Path(
        shell.fine("sample", "ddim", "-c", "strong", "--steps", "5", "-n", "16", "--trajectory", "-q").out.strip()
    )
    grid = np.asarray(Image.open(made / "grid.png").convert("L")).astype(int)
    with Image.open(made / "trajectory.webp") as moving:
        assert moving.n_frames == 5 and moving.width >= 2 * grid.shape[1]
        frames = []
        for i in range(moving.n_frames):
            moving.seek(i)
            frames.append(np.asarray(moving.convert("L")).astype(int))
    high, wide = grid.shape
    left, right = ([frame[-high:, place] for frame in frames] for place in (slice(0, wide), slice(-wide, None)))
    assert all(frame.shape == frames[0].shape for frame in frames)
    assert np.abs(left[-1] - right[-1]).mean() < 2 < np.abs(left[0] - right[0]).mean()
