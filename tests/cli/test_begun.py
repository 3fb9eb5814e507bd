"""Recipes that begin from a run, and few images of one's own: what is taken, what is preserved, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from saved import saved
from shell import Shell
from tiny import table, toml

from gencli.training import plan

FEW = ("--steps", "1", "--batch-size", "4", "--preserve-items", "5")


@pytest.fixture
def made(shell: Shell, tmp_path: Path) -> Path:
    """Runs `ddpm-digits` and `other` of tiny denoisers."""
    for name, width in (("ddpm-digits", 8), ("other", 4)):
        over = {"model": {"net": {"width": width}}, "sample": {"name": "ddim", "steps": 2}}
        saved(tmp_path / "checkpoints", table("ddpm", over), name=name)
    return tmp_path / "checkpoints"


def config(made: Path, name: str) -> dict[str, Any]:
    return json.loads((made / name / "config.json").read_text())


def photos(folder: Path) -> Path:
    """Twelve grey pictures in no folder of a class."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (9, 9), dtype=np.uint8)).save(folder / f"{i}.png")
    return folder


def test_a_recipe_begins_from_its_run_on_its_own_data_at_the_runs_size(shell: Shell, made: Path) -> None:
    done = shell.fine("train", "ddpm-dreambooth", *FEW, "--name", "tuned")
    assert "begun from ddpm-digits" in done.err and "anew" not in done.err
    told = config(made, "tuned")
    assert told["from"]["run"] == "ddpm-digits" and told["recipe"]["train"]["preserve"] == 1.0
    assert told["recipe"]["model"] == config(made, "ddpm-digits")["recipe"]["model"]
    assert told["data"]["name"] == "digits-few" and told["spec"]["x"]["shape"] == [1, 8, 8]
    assert load_file(made / "tuned" / "train" / "preserved.safetensors")["label"].tolist() == [0, 1, 2, 4, 5]
    shell.fine("train", "ddpm-dreambooth", "--resume", "tuned", "--steps", "2")
    shell.fine("sample", "tuned", "--steps", "2", "-n", "2")


def test_photos_take_the_place_of_its_images_and_are_of_a_class_of_the_run(
    shell: Shell, made: Path, tmp_path: Path
) -> None:
    args = ("--data", str(photos(tmp_path / "photos")), "--label", "7", "--adapter", "lora", "--adapter.rank", "2")
    shell.fine("train", "ddpm-dreambooth", *FEW, *args, "--from", "other", "--name", "mine")
    told = config(made, "mine")
    assert told["from"]["run"] == "other" and told["adapters"] == ["lora"] and told["spec"]["x"]["shape"] == [1, 8, 8]
    assert told["data"]["spec"]["cond"]["label"]["names"] == list("0123456789")
    assert 7 not in load_file(made / "mine" / "train" / "preserved.safetensors")["label"].tolist()
    shell("train", "ddpm-dreambooth", *FEW, *args[:2], "--name", "x").fails("of which class is not said", "--label")
    shell("train", "ddpm-dreambooth", *FEW, *args[:2], "--label", "x", "--name", "x").fails("unknown class 'x'")


def test_its_miniature_begins_from_nothing_and_its_plan_from_the_run(
    shell: Shell, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "SECONDS", 0.1)  # of probing
    shell.fine("train", "ddpm-dreambooth", "--smoke", "--name", "small")
    assert "from" not in config(made, "small") and config(made, "small")["recipe"]["train"]["preserve"] == 0
    assert "parameters" in shell.fine("train", "ddpm-dreambooth", *FEW, "--plan").out


def test_a_recipe_of_ones_own_may_begin_from_a_run_too(shell: Shell, made: Path, tmp_path: Path) -> None:
    path = toml(tmp_path / "mine.toml", {"model": {"name": "ddpm"}, "train": {"steps": 1, "batch_size": 4}})
    path.write_text('# mine\nfrom = "other"\n' + path.read_text())
    shell.fine("train", str(path), "--name", "own")
    assert config(made, "own")["from"]["run"] == "other"
    path.write_text(path.read_text().replace('"other"', '"absent"'))
    shell("train", str(path)).fails("absent")


def test_nothing_can_be_preserved_without_a_run(shell: Shell, made: Path) -> None:
    done = shell("train", "ddpm", "--data", "digits", "--smoke", "--preserve", "1")
    assert done.code == 2 and "begins from nothing" in done.err and "--from RUN" in done.err


def test_a_run_to_begin_from_is_a_name(shell: Shell, tmp_path: Path) -> None:
    path = toml(tmp_path / "mine.toml", {"model": {"name": "ddpm"}})
    path.write_text("# mine\nfrom = 3\n" + path.read_text())
    shell("train", str(path)).fails("mine.toml: from is '3'", "the name of a run")
