"""`--teacher RUN`: what a student takes from its teacher, what is told, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from saved import saved
from shell import Shell
from tiny import table

from gencli.cli.options import nested

FEW = ("--steps", "1", "--batch-size", "4", "--most-levels", "3")


@pytest.fixture
def made(shell: Shell, tmp_path: Path) -> Path:
    """Runs `old` and, newer, `ddpm-digits`, both of tiny denoisers, and `flat`, of a VAE."""
    for name, width in (("old", 4), ("ddpm-digits", 8)):
        saved(tmp_path / "checkpoints", table("ddpm", {"model": {"net": {"width": width}}}), name=name)
    saved(tmp_path / "checkpoints", table("vae"), name="flat")
    return tmp_path / "checkpoints"


def recipe(made: Path, name: str) -> dict[str, Any]:
    return json.loads((made / name / "config.json").read_text())["recipe"]


def test_a_student_has_its_teachers_denoiser_and_data_and_is_drawn_from_by_name(shell: Shell, made: Path) -> None:
    shell.fine("train", "consistency", "--teacher", "old", *FEW, "--name", "student")
    tables = recipe(made, "student")
    assert tables["model"]["denoiser"] == recipe(made, "old")["model"] and tables["model"]["teacher"] == "old"
    assert tables["data"]["image_size"] == 8, "as the teacher's, not as the recipe's"
    drawn = shell.fine("sample", "consistency", "--steps", "2", "-n", "2")
    assert "sampler renoise · checkpoint student · 2 steps · 2 images · 2 network evaluations" in drawn.err
    found = shell.fine("sample", "renoise", "-n", "2")
    assert "checkpoint student · 1 steps" in found.err
    assert "checkpoint student" not in shell.fine("sample", "ddim", "--steps", "2", "-n", "2").err
    shell.fine("train", "consistency", "--resume", "student", "--steps", "2")


def test_a_teacher_that_is_named_by_its_model_is_written_down_by_its_own_name(shell: Shell, made: Path) -> None:
    shell.fine("train", "consistency", "--teacher", "ddpm", *FEW, "--name", "student")
    assert recipe(made, "student")["model"]["teacher"] == "ddpm-digits"
    shell("train", "consistency", "--resume", "student", "--teacher", "old").fails("--teacher ddpm-digits", "old")


def test_flags_reach_the_denoisers_network(shell: Shell, made: Path) -> None:
    assert nested({"a.b.c": 1, "a.b": "x", "a.d": 2, "e": 3}) == {"a": {"b": {"name": "x", "c": 1}, "d": 2}, "e": 3}
    smaller = ("--denoiser.net.width", "4", "--denoiser.prediction", "v")
    shell.fine("train", "consistency", "--teacher", "ddpm-digits", *smaller, *FEW, "--name", "student")
    denoiser = recipe(made, "student")["model"]["denoiser"]
    assert denoiser["net"]["width"] == 4 and denoiser["prediction"] == "v" and denoiser["timesteps"] == 20


def test_what_cannot_teach_is_refused_in_a_line(shell: Shell, made: Path) -> None:
    shell("train", "consistency", "--teacher", "nobody").fails("no run 'nobody'")
    shell("train", "consistency", "--teacher", "flat", *FEW).fails("trains a denoiser, vae is none")
    shell("train", "consistency", "--teacher", "old", "--image-size", "12", *FEW).fails(
        "shape (1, 8, 8)", "(1, 12, 12)"
    )
    shell("train", "consistency", "--teacher", "old", "--unconditional", *FEW).fails("no condition", "label (0, 1, 2")
    shell("train", "vae", "--teacher", "old").fails("no setting 'teacher'")
