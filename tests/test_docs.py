"""The worked example of docs/design.md, executed: its blocks are put where the text says, into a copy of gencli."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_layers import LAYERS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "design.md").read_text("utf-8")


def blocks() -> dict[str, str]:
    """Path to content: each block belongs to the path in backquotes that the text names last before it."""
    made: dict[str, str] = {}
    section = TEXT.split("## Adding a model", 1)[1]
    for before, kind, body in re.findall(r"(.*?)^```(\w+)\n(.*?)^```", section, re.M | re.S):
        paths = re.findall(r"`((?:gencli|tests)/[\w/.-]*tiny[\w/.-]*)`", before)
        if kind in ("python", "toml"):
            made[paths[-1]] = body
    return made


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the example in it."""
    folder = tmp_path_factory.mktemp("worked-example")
    shutil.copytree(ROOT / "gencli", folder / "gencli", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    for path, text in blocks().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


def run(copy: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(copy), "GENCLI_HOME": str(copy / "home"), "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-m", *args], cwd=copy, env=env, capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_the_example_is_one_file_one_recipe_one_test() -> None:
    assert [*blocks()] == [
        "gencli/models/diffusion/tiny_edm.py", "gencli/recipes/tiny-edm.toml", "tests/models/test_tiny_edm.py"
    ]  # fmt: skip


def test_the_model_is_listed_without_an_import_or_a_list(copy: Path) -> None:
    out = run(copy, "gencli", "list", "models").stdout
    assert (
        "tiny-edm\tdiffusion\tElucidating the Design Space of Diffusion-Based Generative Models\tKarras et al." in out
    )
    assert "EDM on eight Gaussians" in run(copy, "gencli", "list", "recipes").stdout


@pytest.fixture(scope="module")
def trained(copy: Path) -> Path:
    """The example's run, made by the command line."""
    run(copy, "gencli", "train", "tiny-edm", "--smoke", "--width", "16")
    return copy / "checkpoints" / "tiny-edm-toy2d"


def test_it_trains_and_draws_from_the_command_line(copy: Path, trained: Path) -> None:
    assert (trained / "model.safetensors").is_file()
    done = run(copy, "gencli", "sample", "tiny-edm", "-n", "4", "--steps", "3")
    assert "sampler ddim · checkpoint tiny-edm-toy2d · 3 steps" in done.stderr


def test_its_test_passes(copy: Path) -> None:
    assert "1 passed" in run(copy, "pytest", "-q", "-p", "no:cacheprovider", "tests/models/test_tiny_edm.py").stdout


def test_its_file_is_as_clean_as_ours(copy: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", copy)
    run(copy, "ruff", "check", "gencli/models/diffusion/tiny_edm.py")
    run(copy, "ruff", "format", "--check", "gencli/models/diffusion/tiny_edm.py")


def test_the_layers_of_the_text_are_those_of_the_code() -> None:
    table = TEXT.split("## Layers", 1)[1].split("## ", 1)[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert named == [name for names in LAYERS for name in names if name != "__main__"]
