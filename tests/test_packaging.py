"""What is installed: pinned, complete, and with the trained models inside."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import gencli
from gencli import home

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M))


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_everything_that_is_tested_is_pinned() -> None:
    pinned = {plain(name) for name in PINS}
    extras = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *extras["dev"], *extras["peers"], *extras["export"]]:
        assert plain(re.split(r"[<>=!~ \[]", line)[0]) in pinned, line


def test_torch_is_pinned_without_a_build_in_both_places() -> None:
    assert "+" not in PINS["torch"] and f"TORCH := torch=={PINS['torch']}\n" in (ROOT / "Makefile").read_text("utf-8")


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """The package as a wheel would have it, from a checkout with one shipped run."""
    pytest.importorskip("setuptools")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "gencli", tmp_path / "gencli", ignore=shutil.ignore_patterns("__pycache__"))
    run = tmp_path / "checkpoints" / "shipped" / "one"
    for file in ("config.json", "model.safetensors", "codec/config.json", "train/step-00000001/raw.safetensors"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("x")
    line = [sys.executable, "setup.py", "-q", "build_py", "--build-lib", "out"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tmp_path / "out" / "gencli"


def test_a_wheel_has_every_module_recipe_and_weight(built: Path) -> None:
    ours, theirs = (
        {str(p.relative_to(top)) for p in top.rglob("*") if p.is_file() and p.suffix != ".pyc"}
        for top in (ROOT / "gencli", built)
    )
    assert ours == {path for path in theirs if not path.startswith("shipped")}


def test_a_wheel_has_the_shipped_runs_without_what_only_training_needs(built: Path) -> None:
    shipped = {str(p.relative_to(built / "shipped")) for p in (built / "shipped").rglob("*") if p.is_file()}
    assert shipped == {"one/config.json", "one/model.safetensors", "one/codec/config.json"}


def test_shipped_runs_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "__file__", str(tmp_path / "gencli" / "home.py"))
    assert home.shipped_runs() == tmp_path / "checkpoints" / "shipped"
    (tmp_path / "gencli" / "shipped").mkdir(parents=True)
    assert home.shipped_runs() == tmp_path / "gencli" / "shipped"


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", gencli.__version__)
