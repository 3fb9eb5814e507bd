"""The command line starts at once: what only shows or completes names imports no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

HEAVY = ("torch", "numpy", "scipy", "sklearn", "matplotlib", "accelerate", "PIL", "cleanfid", "safetensors")
PROBE = """
import sys
sys.argv = ["gencli", *sys.argv[1:]]
from gencli.cli.main import main
try:
    main()
finally:
    sys.stderr.write("IMPORTED " + " ".join(sorted(m for m in sys.modules if "." not in m)) + "\\n")
"""


def imported(args: list[str], folder: Path, **env: str) -> tuple[int, str, set[str]]:
    """The exit status, the output, and the top-level modules that a command imported."""
    line = [sys.executable, "-c", PROBE, *args]
    environment = {**os.environ, "COLUMNS": "80", **env}
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8")
    marks = [text for text in done.stderr.splitlines() if text.startswith("IMPORTED ")]
    return done.returncode, done.stdout, {*marks[-1].split()[1:]}


LIGHT = ["--help", "--version", "list", "list models", "list runs --json", "train --help", "sample --help", "eval --help",
         "info --help", "data --help", "data check --help", "convert --help", "demo --help", "runs", "runs --help",
         "runs rm --help", "runs slim --help", "cache", "cache --help", "env --help"]  # fmt: skip


@pytest.mark.parametrize("args", LIGHT)
def test_showing_names_and_help_imports_no_torch(args: str, tmp_path: Path) -> None:
    code, out, modules = imported(args.split(), tmp_path)
    assert code == 0 and out
    assert not modules & {*HEAVY}, f"{args} imports {modules & {*HEAVY}}"


def test_the_probe_sees_torch_where_it_is_needed(tmp_path: Path) -> None:
    code, _, modules = imported(["info", "ddpm"], tmp_path)
    assert code == 0 and "torch" in modules


def test_an_unknown_name_is_answered_without_torch(tmp_path: Path) -> None:
    code, _, modules = imported(["train", "dppm"], tmp_path)
    assert code == 2 and "torch" not in modules


def test_help_is_there_in_well_under_half_a_second(tmp_path: Path) -> None:
    """The best of several, because a busy machine delays; three times what bare Python with Typer takes is the limit."""

    def best(*line: str) -> float:
        took = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, *line], cwd=tmp_path, check=True, capture_output=True)
            took.append(time.perf_counter() - began)
        return min(took)

    bare = best("-c", "import typer, rich.console, typer.rich_utils")
    assert best("-m", "gencli", "--help") < max(0.4, 3 * bare)
