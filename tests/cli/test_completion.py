"""Completion in the shell: names, flags and choices, without importing torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def complete(words: str, folder: Path) -> tuple[list[str], str]:
    """What bash would offer for the last word, and what was imported on the way."""
    env = {
        **os.environ,
        "_GENCLI_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    line = [sys.executable, "-X", "importtime", "-m", "gencli"]
    done = subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout.split(), done.stderr


@pytest.mark.parametrize(
    ("words", "among"),
    [
        ("gencli tr", "train"),
        ("gencli train vq", "vqvae"),
        ("gencli train gated", "gated-pixelcnn"),
        ("gencli sample dd", "ddim"),
        ("gencli info next", "next-token"),
        ("gencli list mod", "models"),
        ("gencli eval fi", "fid"),
        ("gencli data ch", "check"),
    ],
)
def test_names_are_completed_without_torch(words: str, among: str, tmp_path: Path) -> None:
    offered, trace = complete(words, tmp_path)
    assert among in offered and all(word.startswith(words.split(" ")[-1]) for word in offered)
    imported = {line.split("|")[-1].strip() for line in trace.splitlines()}
    assert "typer" in imported and "torch" not in imported


@pytest.mark.parametrize(
    ("words", "among"),
    [
        ("gencli train ddpm --net d", "dit"),
        ("gencli train ddpm --data fash", "fashion-mnist"),
        ("gencli train ddpm --predic", "--prediction"),
    ],
)
def test_flags_and_their_choices_are_completed(words: str, among: str, tmp_path: Path) -> None:
    assert among in complete(words, tmp_path)[0]
