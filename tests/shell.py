"""The command line in this process: what a command prints, and how it ends."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny import table, trained

from gencli import home
from gencli.bundle import Run
from gencli.cli import console
from gencli.cli.main import main


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        return json.loads(self.out)

    def fails(self, *words: str, code: int = 2) -> None:
        """One error line that names the words, one hint, no traceback."""
        errors = [line for line in self.err.splitlines() if line.lstrip().startswith("error:")]
        hints = [line for line in self.err.splitlines() if line.lstrip().startswith("hint:")]
        assert self.code == code, (self.code, self.err)
        assert "Traceback" not in self.err and "please report" not in self.err, self.err
        assert len(errors) == 1 and len(hints) == 1 and len(hints[0].split(":", 1)[1].strip()) > 3, self.err
        assert self.err.splitlines()[-1] == hints[0], "the hint is the last line"
        for word in words:
            assert word in errors[0] + hints[0], (word, self.err)
        assert self.out == "", "an error leaves stdout empty"


class Shell:
    """`shell("list", "models")` runs `gencli list models`."""

    def __init__(self, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> None:
        self.capsys, self.patch = capsys, patch

    def __call__(self, *args: str) -> Done:
        vars(console.state).update(vars(console.State()))
        self.patch.setattr(sys, "argv", ["gencli", *args])
        self.capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        seen = self.capsys.readouterr()
        return Done(code, seen.out, seen.err)

    def fine(self, *args: str) -> Done:
        """Run a command that must succeed."""
        done = self(*args)
        assert done.code == 0, done.err
        return done


@contextmanager
def empty(folder: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    """A shell in an empty folder, without shipped models."""
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(home, "shipped_runs", lambda: folder / "no-shipped")
        yield Shell(capsys, patch)


def runs_in(folder: Path) -> Path:
    """Four tiny runs in `folder/checkpoints`: `ddpm-digits`, `pixelcnn-digits`, `vqvae-digits`, `gated-pixelcnn-digits`."""
    place = folder / "checkpoints"
    for model in ("pixelcnn", "vqvae", "ddpm"):
        trained(place, table(model, steps=2, save_every=1, lr=0.05))  # far enough from zeros that images differ
    codec = Run.load(place / "vqvae-digits")
    trained(place, table("gated-pixelcnn", steps=2), codec_run=codec)
    return folder


def copied(source: Path, target: Path) -> Path:
    """A copy that may be damaged."""
    shutil.copytree(source, target, dirs_exist_ok=True)
    return target
