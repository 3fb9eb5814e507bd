"""Saved states: whole or absent, newest good one first, never lost by an interruption."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import hashes, logged, resumed, session, table, trained, trainer

from gencli.bundle import Run
from gencli.errors import GencliError
from gencli.training import checkpoint
from gencli.training.lock import locked
from gencli.training.session import Session, resolve

MODELS = ["ddpm", "vqvae", "gated-pixelcnn"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps with states at 3 and 6."""
    return trained(tmp_path_factory.mktemp("runs"), table("vqvae"))


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(finished, tmp_path / "checkpoints" / finished.name))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "train").iterdir())


def texts(events: list[Any]) -> list[str]:
    return [event.text for event in events if event.kind == "note"]


@pytest.mark.parametrize("name", MODELS)
def test_a_restored_trainer_goes_on_exactly(name: str, tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    whole = trainer(table(name))
    for _ in range(2):
        whole.take_step()
    state = checkpoint.save_state(whole, tmp_path, keep=2)
    other = trainer(table(name), start=False, seed=1)
    other.prepare()
    checkpoint.restore(other, state, checkpoint.newest(tmp_path)[1])
    for _ in range(2):
        whole.take_step(), other.take_step()
    assert other.step == whole.step == 4
    for mine, theirs in (
        (whole.model.state_dict(), other.model.state_dict()),
        (whole.average.state, other.average.state),
    ):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert torch.equal(theirs[key], value), key
    ours, others = (checkpoint._optimiser_tensors(t) for t in (whole, other))
    assert ours.keys() == others.keys() and all(torch.equal(others[key], ours[key]) for key in ours)


def test_the_weights_file_is_the_average_and_not_the_raw_weights(run: Path) -> None:
    assert (run / "model.safetensors").read_bytes() == (run / "train/step-00000006/average.safetensors").read_bytes()
    raw, average = (
        checkpoint.read_tensors(run / f"train/step-00000006/{n}.safetensors")[0] for n in ("raw", "average")
    )
    assert any(not torch.equal(raw[key], average[key]) for key in average)
    assert not any(key.startswith("quantiser.statistics.") for key in average)
    assert any(key.startswith("quantiser.statistics.") for key in raw)


def test_the_same_training_gives_the_same_files_byte_for_byte(tmp_path: Path) -> None:
    made = {json.dumps(hashes(trained(tmp_path / str(i), table("pixelcnn", steps=2)))) for i in range(6)}
    assert len(made) == 1


def test_nothing_in_a_run_is_a_pickle(run: Path) -> None:
    for path in (p for p in run.rglob("*") if p.is_file()):
        assert path.suffix in (".safetensors", ".json", ".jsonl", ".png", ".md"), path
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path


@pytest.mark.parametrize(("keep", "left"), [(1, [8]), (2, [6, 8]), (3, [4, 6, 8])])
def test_only_the_last_states_are_kept(keep: int, left: list[int], tmp_path: Path) -> None:
    folder = trained(tmp_path, table("pixelcnn", steps=8, save_every=2, keep=keep))
    assert names(folder) == [f"step-{step:08d}" for step in left]


def test_a_folder_with_odd_digits_in_its_name_resumes_at_the_stored_step(run: Path) -> None:
    odd = run.rename(run.parent / "ddpm-9999-step-00000042")
    events = resumed(odd, steps=8)
    assert "resumed at step 6" in texts(events) and logged(odd) == list(range(1, 9))


# -------------------------------------------------------------------------------------------------------------------- damage


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))


def later(path: Path) -> None:
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "step": 5}))


def unlisted(path: Path) -> None:
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "sha256": {}}))


DAMAGE: list[tuple[str, Callable[[Path], None]]] = [
    ("raw.safetensors", truncate),
    ("raw.safetensors", flip),
    ("optim.safetensors", flip),
    ("average.safetensors", flip),
    ("optim.safetensors", Path.unlink),
    ("state.json", truncate),
    ("state.json", Path.unlink),
    ("state.json", later),
    ("state.json", unlisted),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE, ids=lambda v: getattr(v, "__name__", v))
def test_a_damaged_state_is_named_and_the_one_before_it_is_used(
    run: Path, name: str, damage: Callable[[Path], None]
) -> None:
    whole = hashes(run)
    target = run / "train" / "step-00000006" / name
    damage(target)
    events = resumed(run)
    notes = texts(events)
    assert name in notes[0] and ("damaged" in notes[0] or "cannot be read" in notes[0])
    assert "falling back" in notes[0] and notes[1] == "resumed at step 3"
    assert hashes(run) == whole, "the repeated steps must give the same bits"
    assert logged(run) == list(range(1, 7))


def test_with_every_state_damaged_a_resumed_run_starts_at_0_and_says_so(run: Path) -> None:
    whole = hashes(run)
    for state in ("step-00000003", "step-00000006"):
        truncate(run / "train" / state / "raw.safetensors")
    notes = texts(resumed(run))
    assert len(notes) == 3 and "step-00000006" in notes[0] and "step-00000003" in notes[1]
    assert notes[2] == "no saved state: started at 0"
    assert hashes(run) == whole and logged(run) == list(range(1, 7))


def test_a_damaged_newer_state_never_pushes_out_a_good_one(run: Path) -> None:
    flip(run / "train" / "step-00000006" / "optim.safetensors")
    resumed_events = []
    made = session(run.parent, table("vqvae", keep=1, save_every=1), folder=run)
    for event in made.events():
        resumed_events.append(event)
        if event.kind == "saved":
            state, facts, _ = checkpoint.newest(run)
            assert state is not None and facts["step"] == event.step
    assert names(run) == ["step-00000006"]


def test_damaged_weights_are_written_again_from_the_state(run: Path) -> None:
    whole = (run / "model.safetensors").read_bytes()
    (run / "model.safetensors").unlink()
    (run / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(GencliError, match=r"model\.safetensors is damaged") as caught:
        Run.load(run)
    assert "resume" in caught.value.hint
    assert "resumed at step 6" in texts(resumed(run))
    assert (run / "model.safetensors").read_bytes() == whole
    assert Run.load(run).step == 6


def test_a_log_that_ends_in_the_middle_of_a_line_is_mended(run: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as handle:
        handle.write(b'{"step": 7, "loss": 0.1}\n{"step": 8, "lo\xc3')
    resumed(run, steps=9)
    assert logged(run) == list(range(1, 10))
    path = run / "metrics.jsonl"
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    resumed(run, steps=10)
    assert logged(run) == list(range(1, 11))


# ------------------------------------------------------------------------------------------------------ interrupted saves


class Power(Exception):
    """The machine goes off."""


def _interrupted(monkeypatch: pytest.MonkeyPatch, call: str, at: int) -> list[int]:
    """Raise at the `at`-th call of a file operation, and from then on at every call: nothing runs after a power cut."""
    count = [0]
    real = getattr(os, call)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        if count[0] >= at:
            raise Power
        return real(*args, **kwargs)

    monkeypatch.setattr(os, call, wrapped)
    return count


def _calls(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> int:
    folder = Path(shutil.copytree(finished, tmp_path / "count"))
    with monkeypatch.context() as patch:
        count = _interrupted(patch, call, 10**9)
        resumed(folder, steps=7)
    return count[0]


@pytest.mark.parametrize("call", ["replace", "fsync", "link"])
def test_a_save_interrupted_anywhere_leaves_a_state_that_loads(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    monkeypatch.setattr(Session, "draw", lambda self, trainer, step: iter(()))
    total = _calls(finished, tmp_path, monkeypatch, call)
    assert total >= 1
    expected = None
    for at in range(1, total + 1):
        folder = Path(shutil.copytree(finished, tmp_path / f"{at}"))
        with monkeypatch.context() as patch, pytest.raises(Power):
            _interrupted(patch, call, at)
            patch.setattr(shutil, "rmtree", lambda *a, **k: None)  # nor does anything clean up
            resumed(folder, steps=7)
        state, facts, passed = checkpoint.newest(folder)
        assert state is not None and facts["step"] in (6, 7) and not passed, at
        assert Run.load(folder).step in (6, 7)
        notes = texts(resumed(folder, steps=7))
        assert notes[-1] in ("resumed at step 6", "resumed at step 7")
        expected = expected or hashes(folder)
        assert hashes(folder) == expected and logged(folder) == list(range(1, 8)), at
        assert not [p for p in folder.rglob(".*") if p.name.startswith(".writing")], at
        shutil.rmtree(folder)


def test_a_full_disk_is_one_clear_error_and_keeps_the_state_before(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hashes(run)
    real = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if "optim" in self.name:
            real(self, data[:100])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return real(self, data)

    with monkeypatch.context() as patch, pytest.raises(GencliError, match="disk full while writing") as caught:
        patch.setattr(Path, "write_bytes", full)
        resumed(run, steps=8)
    assert caught.value.code == 1 and "untouched" in caught.value.hint
    assert hashes(run) == before and names(run) == ["step-00000003", "step-00000006"]
    assert "resumed at step 6" in texts(resumed(run, steps=8)) and logged(run) == list(range(1, 9))


# --------------------------------------------------------------------------------------------------------------------- locks


def _lock(run: Path, pid: int, host: str | None = None) -> Path:
    import socket

    path = run / "train" / "lock.json"
    path.write_text(json.dumps({"pid": pid, "host": host or socket.gethostname()}))
    return path


def test_a_run_that_a_live_process_trains_is_refused_and_named(run: Path) -> None:
    path = _lock(run, os.getppid())
    with pytest.raises(GencliError, match=f"run {run.name} is being trained by process {os.getppid()}") as caught:
        resumed(run)
    assert str(path) in caught.value.hint and path.exists(), "the other's lock stays"


def test_a_lock_from_another_machine_is_respected(run: Path) -> None:
    _lock(run, 1, "elsewhere")
    with pytest.raises(GencliError, match="process 1 on elsewhere"):
        resumed(run)


def test_the_lock_of_a_dead_process_and_a_damaged_lock_are_taken_over(run: Path) -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {}) if os.name == "posix" else 2**22
    if os.name == "posix":
        os.waitpid(pid, 0)
    path = _lock(run, pid)
    with locked(run):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()
    path.write_text("{")
    with locked(run):
        pass
    assert not path.exists()


# ------------------------------------------------------------------------------------------------------------------- session


def test_a_picture_may_come_before_the_first_save(tmp_path: Path) -> None:
    folder = trained(tmp_path, table("vqvae", steps=4, save_every=4, sample_every=2))
    assert sorted(p.name for p in (folder / "samples").iterdir()) == ["step-00000002.png", "step-00000004.png"]


def test_run_folders_are_numbered_and_never_shared(tmp_path: Path) -> None:
    made = [session(tmp_path, table("pixelcnn")).folder.name for _ in range(3)]
    assert made == ["pixelcnn-digits", "pixelcnn-digits-2", "pixelcnn-digits-3"]
    assert session(tmp_path, table("pixelcnn"), name="CON").folder.name == "con-run"
    assert session(tmp_path, table("pixelcnn"), name="My Run: 7*").folder.name == "my-run-7"


def test_a_recipe_is_stored_with_every_default_spelt_out(run: Path) -> None:
    stored = json.loads((run / "config.json").read_text())
    assert stored["recipe"]["train"]["lr"] == 1e-3 and stored["recipe"]["model"]["beta"] == 0.25
    assert stored["recipe"]["model"]["encoder"]["downsamples"] == 1
    assert stored["step"] == 6 and stored["format"] == 1 and stored["precision"] == "fp32"
    assert stored["data"]["hash"] and stored["data"]["items"]["train"] > 1500
    assert resolve(stored["recipe"]) == stored["recipe"], "resolving what is resolved changes nothing"


def test_a_loss_that_is_not_finite_stops_the_run_with_a_bundle_and_keeps_the_last_state(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gencli.models.vae.vqvae import VQVAE
    from gencli.training.faults import NotFinite

    before, real = hashes(run), VQVAE.loss
    monkeypatch.setattr(
        VQVAE, "loss", lambda self, b, t: {**real(self, b, t), "loss": real(self, b, t)["loss"] * float("nan")}
    )
    with pytest.raises(NotFinite, match="step 7"):
        resumed(run, steps=9)
    bundle = json.loads((run / "train" / "not-finite-7.json").read_text())
    assert bundle["step"] == 7 and len(bundle["items"]) == 8 and bundle["seed"] == 0 and bundle["layer"] == "the loss"
    assert hashes(run) == before and not (run / "train" / "lock.json").exists()


def test_what_a_killed_save_left_behind_goes_on_resuming(tmp_path: Path) -> None:
    folder = trained(tmp_path, table("vqvae"))
    (folder / "train" / ".writing-00000009-77").mkdir()
    for name in (".config.json.77-0a1b2c3d.tmp", ".model-77", "samples/.step-00000009.png.77-0a1b2c3d.tmp"):
        (folder / name).write_bytes(b"half")
    resumed(folder, steps=7)
    assert not list(folder.rglob(".*")), "nothing temporary is left"


def test_a_signal_while_the_processes_agree_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = session(tmp_path, table("pixelcnn", steps=9, save_every=9))

    steps: list[int] = []

    def agreeing(value: int) -> int:
        if len(steps) == 2:
            made.asked = 2  # what a handler does between any two instructions
        return value

    monkeypatch.setattr("gencli.training.session.greatest", agreeing)
    for event in made.events():
        if event.kind == "step":
            steps.append(event.step)
    assert steps == [1, 2, 3, 4] and made.stop == 2
    assert [path.name for path in (made.folder / "train").glob("step-*")] == ["step-00000004"]
