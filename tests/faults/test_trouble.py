"""What is no kill: a full or read-only disk, folders and files that go, signals in every phase, a clock that runs backwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
from pathlib import Path

import pytest
from faulty import STEPS, alone, args, armed, began, folder_of
from PIL import Image
from tiny import hashes, logged, table, toml
from zygote import Process, Zygote

from gencli import crash
from gencli.errors import GencliError
from gencli.training import lock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

AT_POINT = """
import os, shutil, signal, time
from gencli import crash
real, count = crash.point, [0]
def point(name, before=None):
    if name == {name!r}:
        count[0] += 1
        if count[0] == {number}:
            {do}
    real(name, before)
crash.point = point
"""
BACKWARDS = """
import time
now = [time.time()]
def back():
    now[0] -= 3600
    return now[0]
time.time = back
"""
CLOSED = """
import errno
from gencli import files
real = files.replace
def replace(source, target):
    if "step-" in str(target):
        raise OSError(errno.EROFS, "Read-only file system")
    real(source, target)
files.replace = replace
"""


@pytest.fixture(scope="module")
def expected(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The hashes of a run that nothing happens to."""
    return alone(zygote, tmp_path_factory.mktemp("alone"), "vae")[0]


def one_line(process: Process, *words: str) -> None:
    """One error, one hint, nothing on stdout."""
    lines = [line for line in process.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert len(lines) == 2 and "Traceback" not in process.stderr and "report it" not in lines[1], process.stderr
    assert process.stdout == "" and all(word in lines[0] for word in words), lines


def ends_the_same(zygote: Zygote, cwd: Path, expected: dict[str, str]) -> str:
    """Resume, or begin again what had not begun; what stderr said."""
    again = ["--resume"] if folder_of(cwd) else []
    code, process = zygote.run(cwd, *args(cwd, "vae"), *again)
    folder = folder_of(cwd)
    assert code == 0 and folder is not None, process.stderr
    assert hashes(folder) == expected and logged(folder) == list(range(1, STEPS + 1))
    assert not list(folder.rglob(".*")), "nothing temporary is left"
    return process.stderr


# ------------------------------------------------------------------------------------------------------------------- the disk


@pytest.mark.parametrize("point", crash.WRITING)
def test_a_full_disk_at_any_point_is_one_line_and_the_run_goes_on_later(
    zygote: Zygote, tmp_path: Path, expected: dict[str, str], point: str
) -> None:
    number = 3 if point.startswith("file") else 1
    code, process = zygote.run(tmp_path, *args(tmp_path, "vae"), patch=armed(f"{point}:{number}:full"))
    assert code == 1
    one_line(process, "disk full while writing")
    ends_the_same(zygote, tmp_path, expected)


def test_a_disk_that_becomes_read_only_is_one_line(zygote: Zygote, tmp_path: Path, expected: dict[str, str]) -> None:
    code, process = zygote.run(tmp_path, *args(tmp_path, "vae"), patch=CLOSED)
    assert code == 1
    one_line(process, "cannot write", "step-", "read-only")
    assert "started at 0" in ends_the_same(zygote, tmp_path, expected)


def test_a_folder_that_is_deleted_while_training_is_one_line_and_stays_deleted(zygote: Zygote, tmp_path: Path) -> None:
    do = "shutil.rmtree('checkpoints')"
    code, process = zygote.run(
        tmp_path, *args(tmp_path, "vae"), patch=AT_POINT.format(name="step.begun", number=4, do=do)
    )
    assert code == 1
    one_line(process, "cannot write", "metrics.jsonl")
    assert not (tmp_path / "checkpoints").exists()


# ------------------------------------------------------------------------------------------------------------------- the data


def test_images_that_change_or_vanish_while_training_change_nothing_and_are_found_later(
    zygote: Zygote, tmp_path: Path
) -> None:
    for name in ("alone", "broken"):
        photos = tmp_path / name / "photos"
        photos.mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (16, 16), (i * 20, 90, 200 - i)).save(photos / f"{i}.png")
    data = {"name": "folder", "path": "photos", "image_size": "8"}
    line = ["train", str(toml(tmp_path / "t.toml", {**table("vae", steps=6, save_every=2), "data": data}))]
    assert zygote.run(tmp_path / "alone", *line)[0] == 0
    whole = folder_of(tmp_path / "alone")
    cwd = tmp_path / "broken"
    do = "os.remove('photos/3.png'); shutil.copy('photos/4.png', 'photos/5.png')"
    code, process = zygote.run(cwd, *line, patch=AT_POINT.format(name="step.begun", number=3, do=do))
    folder = folder_of(cwd)
    assert code == 0 and whole is not None and folder is not None, process.stderr
    assert hashes(folder) == hashes(whole)
    code, process = zygote.run(cwd, *line, "--resume", "--steps", "8")
    assert code == 2
    one_line(process, "other data", "2 items differ")


def test_decoded_images_that_are_cleared_while_training_are_still_there(zygote: Zygote, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(12):
        Image.new("RGB", (16, 16), (i * 21, 50, 200 - i)).save(photos / f"{i}.png")
    data = {"name": "folder", "path": "photos", "image_size": "8"}
    line = ["train", str(toml(tmp_path / "t.toml", {**table("vae", steps=6, save_every=2), "data": data}))]
    do = "shutil.rmtree(os.path.join(os.environ['GENCLI_HOME'], 'cache'))"
    code, process = zygote.run(tmp_path, *line, patch=AT_POINT.format(name="step.begun", number=3, do=do))
    folder = folder_of(tmp_path)
    assert code == 0 and folder is not None, process.stderr
    assert zygote.run(tmp_path, *line, "--name", "other")[0] == 0
    assert hashes(folder) == hashes(tmp_path / "checkpoints" / "other")


# ---------------------------------------------------------------------------------------------------------- clocks and signals


def test_a_clock_that_runs_backwards_changes_nothing(zygote: Zygote, tmp_path: Path, expected: dict[str, str]) -> None:
    code, process = zygote.run(tmp_path, *args(tmp_path, "vae"), patch=BACKWARDS + armed("state.kept:2"))
    assert code == -9, process.stderr
    code, process = zygote.run(tmp_path, *args(tmp_path, "vae"), "--resume", patch=BACKWARDS)
    folder = folder_of(tmp_path)
    assert code == 0 and began(process.stderr) == 4 and folder is not None and hashes(folder) == expected


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize(
    ("point", "number"),
    [("step.begun", 1), ("step.begun", 4), ("grid.frame", 1), ("file.half", 3), ("state.written", 2)],
)
def test_a_signal_in_any_phase_of_training_saves_and_resumes_exactly(
    zygote: Zygote, tmp_path: Path, expected: dict[str, str], name: str, code: int, point: str, number: int
) -> None:
    do = f"os.kill(os.getpid(), signal.{name})"
    got, process = zygote.run(tmp_path, *args(tmp_path, "vae"), patch=AT_POINT.format(name=point, number=number, do=do))
    assert got == code and "continue with: gencli train" in process.stderr, process.stderr
    ends_the_same(zygote, tmp_path, expected)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("verb", ["sample", "eval"])
def test_a_signal_while_samples_are_drawn_ends_with_its_code_and_leaves_nothing_half(
    zygote: Zygote, tmp_path: Path, name: str, code: int, verb: str
) -> None:
    assert zygote.run(tmp_path, *args(tmp_path, "vae"))[0] == 0
    line = {"sample": ["sample", "vae-digits", "-n", "4"], "eval": ["eval", "fid", "-n", "40", "--batch-size", "10"]}[
        verb
    ]
    own = f"import os; os.environ['GENCLI_HOME'] = {str(tmp_path / 'home')!r}\n"  # else what was drawn before is known
    do = f"os.kill(os.getpid(), signal.{name})"
    got, process = zygote.run(tmp_path, *line, patch=own + AT_POINT.format(name="grid.frame", number=1, do=do))
    assert got == code and "Traceback" not in process.stderr and process.stdout == "", process.stderr
    assert not list(tmp_path.rglob(".*.tmp"))
    got, process = zygote.run(tmp_path, *line, patch=own)
    assert got == 0, process.stderr


# ------------------------------------------------------------------------------------------------------------------ the lock


def _stale(path: Path, **facts: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"pid": os.getppid(), "host": socket.gethostname(), **facts}))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_a_lock_whose_number_went_to_another_process_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "train" / "lock.json"
    _stale(path, began=lock._began(os.getppid()))
    with pytest.raises(GencliError, match=f"process {os.getppid()}"), lock.locked(tmp_path):
        pass
    _stale(path, began="1")
    with lock.locked(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not list(path.parent.iterdir())


def test_of_two_that_find_a_stale_lock_at_once_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "train" / "lock.json"
    path.parent.mkdir()
    path.write_text("{")
    real, other = lock.holder, {"pid": os.getppid(), "host": socket.gethostname()}

    def slow(asked: Path) -> str | None:
        found = real(asked)
        if asked == path and found is None:  # between looking and taking, another process was faster
            path.unlink()
            path.write_text(json.dumps(other))
        return found

    monkeypatch.setattr(lock, "holder", slow)
    with pytest.raises(GencliError, match=f"process {os.getppid()}"), lock.locked(tmp_path):
        pass
    assert json.loads(path.read_text()) == other, "the faster one keeps it"
    assert [each.name for each in path.parent.iterdir()] == ["lock.json"]


def test_of_many_threads_one_at_a_time_holds_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_alive", lambda pid: True)
    monkeypatch.setattr(os, "getpid", lambda: os.getppid() + threading.get_ident())
    inside, most, got = [0], [0], [0]

    def ask() -> None:
        for _ in range(50):
            try:
                with lock.locked(tmp_path):
                    inside[0] += 1
                    most[0] = max(most[0], inside[0])
                    got[0] += 1
                    inside[0] -= 1
            except GencliError:
                pass

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1 and got[0] >= 1
    shutil.rmtree(tmp_path / "train")
