"""Runs that are killed, stopped, or run out of disk, in real processes: resumed equals uninterrupted, bit for bit."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import hashes, logged, table, toml, trained
from zygote import Process, Zygote

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

STEPS, EVERY = 40, 4
KILLER = """
import os, signal
from gencli import files
real, count = files.replace, [0]
def replace(source, target):
    count[0] += 1
    if count[0] == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    real(source, target)
files.replace = replace
"""
AT_STEP = """
import os, signal
from gencli.training import trainer
real = trainer.Trainer.take_step
def take_step(self):
    if self.step == {at}:
        {do}
    return real(self)
trainer.Trainer.take_step = take_step
"""


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained vqvae."""
    return trained(tmp_path_factory.mktemp("codec"), table("vqvae"))


def recipe(cwd: Path, model: str, **train: Any) -> list[str]:
    """The command that trains a tiny recipe of many steps."""
    settings = {"steps": STEPS, "save_every": EVERY, "batch_size": 4, **train}
    cwd.mkdir(parents=True, exist_ok=True)
    return ["train", str(toml(cwd / "tiny.toml", table(model, **settings)))]


def only(cwd: Path) -> Path:
    (folder,) = [p for p in (cwd / "checkpoints").iterdir() if p.is_dir()]
    return folder


def announced(text: str) -> int:
    """The last save that the process spoke of."""
    return max([0, *map(int, re.findall(r"saved at step (\d+)", text))])


def continued(text: str) -> int:
    """The step that a resumed process said it continued from."""
    if "no saved state: started at 0" in text:
        return 0
    (step,) = re.findall(r"resumed at step (\d+)", text)
    return int(step)


def check_log(folder: Path, steps: int = STEPS) -> None:
    assert logged(folder) == list(range(1, steps + 1))


def killed(process: Process, chance: random.Random, least: int, folder: Path) -> int:
    """Kill the process at a random moment after its save at step `least` or later; returns the last save announced."""
    process.until(lambda: announced(process.stderr) >= least)
    time.sleep(chance.uniform(0, 0.1))
    process.kill()
    code = process.wait()
    assert code == -signal.SIGKILL, f"the run ended ({code}) before it was killed: {process.stderr}"
    return announced(process.stderr)


def kill_twice(zygote: Zygote, tmp_path: Path, args: list[str], seed: int) -> None:
    """Compare a run that is killed, resumed, killed again and resumed with one that is left alone."""
    chance = random.Random(seed)
    slow = AT_STEP.format(at="self.step", do="import time; time.sleep(0.004)")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    code, process = zygote.run(whole, *args)
    assert code == 0, process.stderr
    process = zygote.start(broken, *args, patch=slow)
    saved = killed(process, chance, chance.randrange(1, 3) * EVERY, broken)
    folder = only(broken)
    process = zygote.start(broken, *args, "--resume", patch=slow)
    second = killed(process, chance, saved + chance.randrange(1, 3) * EVERY, broken)
    assert continued(process.stderr) >= saved
    code, process = zygote.run(broken, *args, "--resume", folder.name)
    assert code == 0, process.stderr
    assert continued(process.stderr) >= second
    assert hashes(folder) == hashes(only(whole))
    check_log(folder)
    assert not list(folder.rglob(".*")), "nothing temporary is left"
    assert json.loads((folder / "config.json").read_text())["step"] == STEPS


@pytest.mark.parametrize("model", ["vqvae", "gated-pixelcnn", "ddpm", "wgan-gp"])
def test_a_run_killed_twice_equals_an_uninterrupted_one(zygote: Zygote, tmp_path: Path, model: str) -> None:
    kill_twice(zygote, tmp_path, recipe(tmp_path, model), seed=1)


def test_a_prior_over_codes_killed_twice_equals_an_uninterrupted_one(
    zygote: Zygote, tmp_path: Path, codec: Path
) -> None:
    kill_twice(zygote, tmp_path, [*recipe(tmp_path, "gated-pixelcnn"), "--codec", str(codec)], seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 18))
@pytest.mark.parametrize("model", ["vqvae", "gated-pixelcnn", "pixelcnn", "ddpm", "vae", "realnvp", "wgan-gp"])
def test_a_run_killed_twice_at_many_moments_equals_an_uninterrupted_one(
    zygote: Zygote, tmp_path: Path, model: str, seed: int
) -> None:
    over = {"net": {"dropout": 0.3}} if model == "ddpm" else {}
    settings = {"shift": 1, "schedule": "cosine", "warmup": 5, "grad_accum": 2, "clip": 1.0}
    args = [
        "train",
        str(toml(tmp_path / "t.toml", table(model, {"model": over}, steps=STEPS, save_every=EVERY, **settings))),
    ]
    kill_twice(zygote, tmp_path, args, seed)


def test_the_plain_command_killed_resumes_exactly(zygote: Zygote, tmp_path: Path) -> None:
    args = recipe(tmp_path, "vqvae", steps=2000, keep=1)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "gencli", *args], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    text = ""
    while announced(text) < EVERY:
        line = process.stderr.readline()
        assert line, text
        text += line
    process.kill()
    saved = announced(text + process.communicate()[1])
    folder = only(tmp_path)
    code, resumed = zygote.run(tmp_path, *args, "--resume", "--steps", str(saved + 5))
    assert code == 0 and continued(resumed.stderr) >= saved, resumed.stderr
    assert resumed.stdout == f"checkpoints/{folder.name}\n"
    last = int(json.loads((folder / "config.json").read_text())["step"])
    check_log(folder, last)
    alone = trained(tmp_path / "alone", table("vqvae", batch_size=4, steps=last, save_every=EVERY))
    assert hashes(alone) == hashes(folder)


# ------------------------------------------------------------------------------------------------------- particular moments


@pytest.mark.parametrize("model", ["vqvae", "ddpm"])
def test_killed_before_the_first_save_a_run_starts_again_at_0_and_says_so(
    zygote: Zygote, tmp_path: Path, model: str
) -> None:
    args = recipe(tmp_path, model, steps=6)
    code, process = zygote.run(tmp_path, *args, patch=AT_STEP.format(at=2, do="os.kill(os.getpid(), signal.SIGKILL)"))
    assert code == -signal.SIGKILL
    folder = only(tmp_path)
    code, process = zygote.run(tmp_path, *args, "--resume")
    assert code == 0 and "no saved state: started at 0" in process.stderr
    check_log(folder, 6)
    (tmp_path / "alone").mkdir()
    zygote.run(tmp_path / "alone", *args)
    assert hashes(folder) == hashes(only(tmp_path / "alone"))


def test_killed_at_any_rename_of_a_save_a_run_resumes_exactly(zygote: Zygote, tmp_path: Path) -> None:
    args = recipe(tmp_path, "gated-pixelcnn", steps=6, save_every=2)
    (tmp_path / "alone").mkdir()
    zygote.run(tmp_path / "alone", *args)
    expected = hashes(only(tmp_path / "alone"))
    moments = set()
    for at in range(4, 14, 2):
        cwd = tmp_path / str(at)
        cwd.mkdir()
        code, process = zygote.run(cwd, *args, patch=KILLER.format(at=at))
        assert code == -signal.SIGKILL, f"there is no rename {at}"
        saved = announced(process.stderr)
        code, process = zygote.run(cwd, *args, "--resume")
        assert code == 0 and continued(process.stderr) >= saved, process.stderr
        moments.add((saved, continued(process.stderr)))
        assert hashes(only(cwd)) == expected, at
        check_log(only(cwd), 6)
    assert {b > a for a, b in moments} == {True, False}, "both before and after the rename that counts"


def test_a_run_killed_after_its_last_step_is_whole(zygote: Zygote, tmp_path: Path) -> None:
    args = recipe(tmp_path, "vqvae", steps=6)
    die = "from gencli.report import card; import os; card.write_card = lambda *a: os.kill(os.getpid(), 9)"
    code, process = zygote.run(tmp_path, *args, patch=die)
    assert code == -signal.SIGKILL and announced(process.stderr) == 6
    folder = only(tmp_path)
    before = hashes(folder)
    code, process = zygote.run(tmp_path, *args, "--resume")
    assert code == 0 and continued(process.stderr) == 6 and hashes(folder) == before
    check_log(folder, 6)
    assert (folder / "README.md").is_file()
    code, process = zygote.run(tmp_path, *args, "--resume", "--steps", "9")
    assert code == 0 and "steps is now 9, was 6" in process.stderr
    check_log(folder, 9)


# ------------------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_finishes_the_step_saves_and_prints_a_command_that_resumes(
    zygote: Zygote, tmp_path: Path, name: str, code: int
) -> None:
    args = recipe(tmp_path, "pixelcnn", steps=8, save_every=100)
    patch = AT_STEP.format(at=3, do=f"os.kill(os.getpid(), signal.{name})")
    got, process = zygote.run(tmp_path, *args, patch=patch)
    assert got == code, process.stderr
    assert "Traceback" not in process.stderr and announced(process.stderr) == 4
    folder = only(tmp_path)
    assert logged(folder) == [1, 2, 3, 4]
    (command,) = re.findall(r"continue with: gencli (.+)", process.stderr)
    got, process = zygote.run(tmp_path, *shlex.split(command))
    assert got == 0 and continued(process.stderr) == 4, process.stderr
    check_log(folder, 8)


def test_the_printed_command_resumes_a_run_in_any_folder(zygote: Zygote, tmp_path: Path) -> None:
    args = [*recipe(tmp_path, "pixelcnn", steps=6), "--out", str(tmp_path / "my runs")]
    patch = AT_STEP.format(at=3, do="os.kill(os.getpid(), signal.SIGTERM)")
    _, process = zygote.run(tmp_path, *args, patch=patch)
    (command,) = re.findall(r"continue with: gencli (.+)", process.stderr)
    code, process = zygote.run(tmp_path, *shlex.split(command))
    assert code == 0 and continued(process.stderr) == 4, process.stderr


def test_a_second_signal_ends_at_once_and_leaves_the_last_state(zygote: Zygote, tmp_path: Path) -> None:
    args = recipe(tmp_path, "pixelcnn", steps=8, save_every=2)
    twice = "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGTERM); os.abort()"
    code, process = zygote.run(tmp_path, *args, patch=AT_STEP.format(at=3, do=twice))
    assert code == 143, process.stderr
    assert announced(process.stderr) == 2 and logged(only(tmp_path)) == [1, 2]
    code, process = zygote.run(tmp_path, *args, "--resume")
    assert code == 0 and continued(process.stderr) == 2


def test_a_signal_while_a_picture_is_drawn_abandons_nothing_that_counts(zygote: Zygote, tmp_path: Path) -> None:
    args = recipe(tmp_path, "ddpm", steps=8, sample_every=4)
    patch = """
import os, signal
from gencli.evaluation import preview
real = preview.preview
def draw(*a):
    os.kill(os.getpid(), signal.SIGINT)
    return real(*a)
preview.preview = draw
"""
    code, process = zygote.run(tmp_path, *args, patch=patch)
    assert code == 130 and "continue with" in process.stderr
    code, process = zygote.run(tmp_path, *args, "--resume")
    assert code == 0
    check_log(only(tmp_path), 8)


# ---------------------------------------------------------------------------------------------------------------- disk full


def test_a_disk_that_fills_up_is_one_line_and_the_state_before_it_resumes(zygote: Zygote, tmp_path: Path) -> None:
    args = recipe(tmp_path, "vqvae", steps=4)
    assert zygote.run(tmp_path, *args)[0] == 0
    folder = only(tmp_path)
    before = hashes(folder)
    sizes = {p.stem: p.stat().st_size for p in (folder / "train" / "step-00000004").glob("*.safetensors")}
    assert sizes["raw"] < sizes["optim"]
    limit = (sizes["raw"] + sizes["optim"]) // 2
    code, process = zygote.run(tmp_path, *args, "--resume", "--steps", "12", limit=limit)
    assert code == 1 and process.stdout == ""
    assert "resumed at step 4" in process.stderr
    lines = [line for line in process.stderr.splitlines() if line.startswith(("error:", "hint:"))]
    assert len(lines) == 2 and "disk full while writing" in lines[0] and "optim.safetensors" in lines[0]
    assert "Traceback" not in process.stderr and hashes(folder) == before
    assert zygote.run(tmp_path, "sample", folder.name, "-n", "1")[0] == 2, "a codec alone has nothing to sample"
    code, process = zygote.run(tmp_path, *args, "--resume", "--steps", "12")
    assert code == 0 and continued(process.stderr) == 4, process.stderr
    check_log(folder, 12)


# --------------------------------------------------------------------------------------------------- what may not be changed


@pytest.mark.parametrize(
    ("flag", "value", "old"),
    [("--lr", "0.5", "0.001"), ("--batch-size", "16", "8"), ("--seed", "7", "0"), ("--precision", "bf16", "auto")],
)
def test_a_resumed_run_refuses_a_changed_setting_with_both_values(
    zygote: Zygote, tmp_path: Path, flag: str, value: str, old: str
) -> None:
    folder = trained(tmp_path / "checkpoints", table("pixelcnn", steps=1))
    code, process = zygote.run(tmp_path, "train", "pixelcnn", "--resume", flag, value)
    assert code == 2
    (error,) = [line for line in process.stderr.splitlines() if line.startswith("error:")]
    assert folder.name in error and f"{flag} {old}" in error and error.endswith(f"to {value}")


def test_a_run_that_is_being_trained_is_not_resumed_by_a_second_process(zygote: Zygote, tmp_path: Path) -> None:
    args = recipe(tmp_path, "pixelcnn", steps=6)
    waiting = AT_STEP.format(at=2, do="import time; time.sleep(60)")
    first = zygote.start(tmp_path, *args, patch=waiting)
    try:
        first.until(lambda: list(tmp_path.glob("checkpoints/*/train/lock.json")) != [])
        code, second = zygote.run(tmp_path, *args, "--resume")
        assert code == 2 and f"is being trained by process {first.pid}" in second.stderr
    finally:
        first.kill()
        first.wait()
    code, process = zygote.run(tmp_path, *args, "--resume")
    assert code == 0, process.stderr
