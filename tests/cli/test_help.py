"""Help screens under review: a changed screen is a changed file in `snapshots/`.

`GENCLI_SNAPSHOTS=write pytest tests/cli/test_help.py` rewrites them.
"""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "snapshots"
SCREENS = {
    "root": "--help",
    "train": "train --help",
    "train-ddpm": "train ddpm --help",
    "sample": "sample --help",
    "sample-ddim": "sample ddim --help",
    "eval": "eval --help",
    "compare": "compare --help",
    "list": "list",
    "list-models": "list models",
    "info": "info --help",
    "info-ddim": "info ddim",
    "data-check": "data check --help",
    "demo": "demo --help",
}
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "80", "PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "0"}
COLOURED = ("FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "GITHUB_ACTIONS", "TERMINAL_WIDTH", "LINES")


def screen(args: str, folder: Path, **env: str) -> subprocess.CompletedProcess[bytes]:
    """Run gencli in an empty folder with nothing that colours or widens inherited."""
    kept = {key: value for key, value in os.environ.items() if key not in COLOURED}
    line = [sys.executable, "-m", "gencli", *args.split()]
    return subprocess.run(line, cwd=folder, env={**kept, **PLAIN, **env}, capture_output=True)


def tidy(text: str) -> str:
    """Without trailing blanks, runs that came with gencli, and where the package is."""
    kept = [line.rstrip() for line in text.splitlines() if "\tshipped\t" not in line]
    if any(line.startswith("runs:") for line in kept):
        start = next(i for i, line in enumerate(kept) if line.startswith("runs:"))
        kept = kept[:start]
    return "\n".join(kept).strip() + "\n"


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_is_as_reviewed(name: str, tmp_path: Path) -> None:
    done = screen(SCREENS[name], tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    text, path = tidy(done.stdout.decode("utf-8")), FOLDER / f"{name}.txt"
    assert "\x1b" not in text
    if os.environ.get("GENCLI_SNAPSHOTS") == "write":
        path.write_text(text, encoding="utf-8", newline="\n")
    before = path.read_text("utf-8")
    changed = "\n".join(difflib.unified_diff(before.splitlines(), text.splitlines(), "reviewed", "now", lineterm=""))
    assert text == before, f"{changed}\n\nGENCLI_SNAPSHOTS=write pytest {__file__} rewrites it"


def test_every_snapshot_is_of_a_screen() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == {*SCREENS}


@pytest.mark.parametrize("columns", ["20", "40", "80", "300"])
@pytest.mark.parametrize("args", ["--help", "train --help", "list models"])
def test_any_width_shows_everything(args: str, columns: str, tmp_path: Path) -> None:
    done = screen(args, tmp_path, COLUMNS=columns)
    text = done.stdout.decode("utf-8")
    assert done.returncode == 0 and "Traceback" not in done.stderr.decode()
    if columns in ("80", "300"):
        assert ("ddpm" if args != "--help" else "train") in text
    if args == "list models":
        assert "Denoising Diffusion Probabilistic Models" in text, "a pipe is never truncated"
    else:
        assert max(map(len, text.splitlines())) <= int(columns)


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"NO_COLOR": "1", "TERM": "xterm-256color"}, {"TERM": ""}])
def test_nothing_is_coloured_where_colour_is_not_wanted(env: dict[str, str], tmp_path: Path) -> None:
    for args in ("--help", "list samplers"):
        done = screen(args, tmp_path, **env)
        assert done.returncode == 0 and b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "cp437"])
@pytest.mark.parametrize("args", ["--help", "train --help", "list", "list nothing"])
def test_a_console_that_is_not_utf8_is_served(args: str, encoding: str, tmp_path: Path) -> None:
    done = screen(args, tmp_path, PYTHONIOENCODING=encoding)
    said = done.stdout + done.stderr
    assert done.returncode == (2 if args == "list nothing" else 0), said.decode(encoding, "replace")
    assert b"Error" not in said and b"Traceback" not in said
    said.decode(encoding)


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    line = f'"{sys.executable}" -m gencli list | head -n 1'
    done = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 1
    assert not re.search(r"Traceback|BrokenPipe|Exception ignored", done.stderr)
