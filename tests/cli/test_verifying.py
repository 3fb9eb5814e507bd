"""`--verify-resume`: real processes are killed, the verdict is right, and nothing is left behind."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from shell import Shell
from tiny import table, toml
from zygote import Zygote

from gencli.training import verify

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def verified(zygote: Zygote, cwd: Path, patch: str = "") -> tuple[int, str]:
    """Exit code and stdout of a verification in `cwd`."""
    place = cwd / "tmp"
    place.mkdir()
    recipe = toml(cwd / "t.toml", table("pixelcnn"))
    patch = f"import tempfile; tempfile.tempdir = {str(place)!r}\n{patch}"
    code, process = zygote.run(cwd, "train", str(recipe), "--verify-resume", "--json", patch=patch)
    assert not list(place.iterdir()) and not (cwd / "checkpoints").exists(), "nothing is left"
    return code, process.stdout


FORKED = "from gencli.training import verify; verify.METHOD = 'fork'\n"
FORGETFUL = """
from gencli.training import checkpoint
real = checkpoint.restore
def restore(trainer, state, facts):
    real(trainer, state, facts)
    for optimiser in trainer.optimisers.values():
        optimiser.optimizer.state.clear()
checkpoint.restore = restore
"""


@pytest.mark.parametrize("patch", [FORKED, pytest.param("", marks=pytest.mark.slow)], ids=["forked", "spawned"])
def test_a_run_that_resumes_exactly_is_said_to(zygote: Zygote, tmp_path: Path, patch: str) -> None:
    code, out = verified(zygote, tmp_path, patch)
    found = json.loads(out)
    assert (
        code == 0 and found["verified"] and found["kills"] == 2 and found["resumed"] == [2, 2] and found["files"] == 4
    )
    assert found["next"] == f"gencli train {tmp_path / 't.toml'}"


def test_a_resume_that_forgets_the_optimiser_is_found_out(zygote: Zygote, tmp_path: Path) -> None:
    code, out = verified(zygote, tmp_path, FORKED + FORGETFUL)
    assert code == 1 and "resuming is not exact here: 4 of 4 files differ" in json.loads(out)["error"]


def test_another_end_is_told_with_the_file_that_differs(
    shell: Shell, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = verify.Verdict(2, (2, 2), 4, ("model.safetensors",))
    monkeypatch.setattr(verify, "verify", lambda *a: made)
    recipe = toml(tmp_path / "t.toml", table("pixelcnn"))
    shell("train", str(recipe), "--verify-resume").fails("1 of 4 files differ", "model.safetensors", "2 and 2", code=1)


def test_files_that_differ_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = iter([{"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}])
    monkeypatch.setattr(verify, "_digests", lambda root: next(digests))
    monkeypatch.setattr(verify, "_run", lambda start, fault: 2 if start.root.name == "broken" else 0)
    assert verify.verify({"train": {}}, lambda text: None) == verify.Verdict(2, (2, 2), 2, ("b", "c"))


def test_what_goes_wrong_inside_is_one_line(shell: Shell, tmp_path: Path, temporary: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    tables = {**table("ddpm"), "data": {"name": "folder", "path": str(folder)}}
    shell("train", str(toml(tmp_path / "t.toml", tables)), "--verify-resume").fails("photos", code=1)
    shell("train", "ddpm", "--verify-resume", "--resume").fails("ddpm")
