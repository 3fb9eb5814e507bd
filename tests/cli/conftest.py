"""Shells and tiny runs for the tests of commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Shell, copied, empty, runs_in


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny runs."""
    return runs_in(tmp_path_factory.mktemp("made"))


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    """A shell in an empty folder."""
    with empty(tmp_path, capsys) as made:
        yield made


@pytest.fixture
def runs(made: Path, shell: Shell, tmp_path: Path) -> Path:
    """The same shell's folder with copies of the runs."""
    return copied(made, tmp_path) / "checkpoints"
