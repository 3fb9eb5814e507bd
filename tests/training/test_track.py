"""Trackers: TensorBoard's own reader finds what metrics.jsonl has, once a step; wandb is called as it wants to be."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate import tracking
from accelerate.utils import LoggerType
from PIL import Image
from shell import Shell, empty
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import logged, resumed, session, table, trained

from gencli.errors import GencliError
from gencli.training import optim, track
from gencli.training.settings import TrainConfig

TABLE = table("ddpm", steps=6, save_every=3, warmup=4, sample_every=3, track="tensorboard")


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    with empty(tmp_path / "here", capsys) as made:
        yield made


def events(folder: Path, purge: bool = True) -> EventAccumulator:
    """What TensorBoard shows of a run."""
    made = EventAccumulator(str(folder / "track"), {"images": 0, "scalars": 0}, purge_orphaned_data=purge)
    return made.Reload()


def steps(folder: Path, key: str = "loss", purge: bool = True) -> list[int]:
    return [event.step for event in events(folder, purge).Scalars(key)]


def interrupted(root: Path, at: int) -> Path:
    """A run that ended without warning after logging step `at`."""
    made = session(root, TABLE)
    running = made.events()
    for event in running:
        if event.kind == "step" and event.step == at:
            running.close()
    return made.folder


# -------------------------------------------------------------------------------------------------------------- TensorBoard


def test_tensorboard_has_every_number_of_the_log_and_the_learning_rate(tmp_path: Path) -> None:
    folder = trained(tmp_path, TABLE)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shown = events(folder)
    assert set(shown.Tags()["scalars"]) == {*rows[0], "lr"} - {"step", "seconds"}
    for key in set(rows[0]) - {"step", "seconds"}:
        found = [(event.step, event.value) for event in shown.Scalars(key)]
        assert found == [(row["step"], pytest.approx(row[key], rel=1e-6)) for row in rows]
    want = [optim.rate(TrainConfig(warmup=4), turn, 6) for turn in range(6)]
    assert [event.value for event in shown.Scalars("lr")] == pytest.approx(want)


def test_tensorboard_has_the_pictures(tmp_path: Path) -> None:
    folder = trained(tmp_path, TABLE)
    found = events(folder).Images("samples")
    assert [image.step for image in found] == [3, 6]
    for image in found:
        saved = Image.open(folder / "samples" / f"step-{image.step:08d}.png").convert("RGB")
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), np.asarray(saved))


def test_no_step_is_shown_twice_after_an_interruption(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, 5)
    assert steps(folder) == [1, 2, 3, 4, 5], "past the saved state of step 3"
    resumed(folder)
    assert steps(folder) == logged(folder) == [1, 2, 3, 4, 5, 6]
    assert steps(folder, purge=False).count(4) == 2, "both are in the files; the reader is told which counts"


def test_a_run_without_a_saved_state_is_shown_from_its_new_start(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, 2)
    resumed(folder)
    assert steps(folder) == [1, 2, 3, 4, 5, 6]


def test_a_resumed_run_may_begin_and_end_tracking(tmp_path: Path) -> None:
    folder = trained(tmp_path, table("ddpm", steps=3))
    assert not (folder / "track").exists(), "without a tracker there is no folder for it"
    resumed(folder, track="tensorboard", steps=6)
    assert steps(folder) == [4, 5, 6]
    resumed(folder, track="none", steps=9)
    assert steps(folder) == [4, 5, 6] and logged(folder)[-1] == 9


def test_tracking_changes_no_weight(tmp_path: Path) -> None:
    plain, tracked = (trained(tmp_path / name, table("ddpm", track=name)) for name in ("none", "tensorboard"))
    assert (plain / "model.safetensors").read_bytes() == (tracked / "model.safetensors").read_bytes()


def test_it_is_a_flag_and_a_run_of_before_trackers_resumes(shell: Shell) -> None:
    shell.fine("train", "ddpm", "--smoke", "--track", "tensorboard")
    folder = Path("checkpoints/ddpm-digits")
    assert steps(folder) == [1, 2, 3]
    config = json.loads((folder / "config.json").read_text())
    del config["recipe"]["train"]["track"]
    (folder / "config.json").write_text(json.dumps(config))
    said = shell.fine("train", "ddpm", "--resume", "--steps", "4").err
    assert "track" not in said and "steps is now 4, was 3" in said
    said = shell.fine("train", "ddpm", "--resume", "--steps", "5", "--track", "tensorboard").err
    assert "track is now tensorboard, was none" in said
    assert steps(folder) == [1, 2, 3, 5]


# ------------------------------------------------------------------------------------------------------------ not installed


@pytest.mark.parametrize("flag", [[], ["--plan"]])
@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_named_before_a_run_is_begun(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tracker: str, flag: list[str]
) -> None:
    monkeypatch.setattr(track, "find_spec", lambda name: None)
    done = shell("train", "ddpm", "--smoke", "--track", tracker, *flag)
    done.fails(f"tracker '{tracker}' is not installed", "pip install 'gencli[track]'")
    assert not list(Path.cwd().iterdir())


def test_an_unknown_tracker_is_answered_with_a_near_one(shell: Shell) -> None:
    shell("train", "ddpm", "--smoke", "--track", "tensorbord").fails("'tensorbord'", "tensorboard")


def test_a_plan_tracks_nothing(shell: Shell) -> None:
    shell.fine("train", "ddpm", "--smoke", "--track", "tensorboard", "--plan")
    assert not list(Path.cwd().iterdir())


# -------------------------------------------------------------------------------------------------------------------- wandb

STUB = """
from pathlib import Path
from wandb.errors import Error
calls, failing = [], []
class Image:
    def __init__(self, pixels): self.shape = pixels.shape
class Run:
    def log(self, values, step=None): calls.append(("log", step, values))
    def finish(self): calls.append(("finish",))
def init(project, **given):
    assert Path(given["dir"]).is_dir()
    if failing: raise Error("api_key not configured (no-tty)")
    calls.append(("init", project, given))
    return Run()
"""


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in that records its calls; Accelerate's own tracker makes them."""
    package = tmp_path / "stub" / "wandb"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(STUB)
    (package / "errors.py").write_text("class Error(Exception):\n    pass\n")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.WANDB])
    for name in ("wandb", "wandb.errors"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import wandb

    yield wandb
    for name in ("wandb", "wandb.errors"):
        sys.modules.pop(name, None)


def test_wandb_gets_the_same_run_again_after_resuming(tmp_path: Path, wandb: Any) -> None:
    tables = table("ddpm", steps=3, save_every=3, sample_every=3, track="wandb")
    folder = trained(tmp_path, tables)
    (_, project, given), *logs, end = wandb.calls
    assert project == "gencli" and given["name"] == folder.name and given["config"]["model"]["name"] == "ddpm"
    assert Path(given["dir"]) == folder / "track" and given["resume"] == "allow" and end == ("finish",)
    numbers = [(step, values["loss"], values["lr"]) for _, step, values in logs if "loss" in values]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert numbers == [(row["step"], row["loss"], 1e-3) for row in rows]
    ((step, images),) = [(step, values["samples"]) for _, step, values in logs if "samples" in values]
    assert step == 3 and [image.shape[2] for image in images] == [3]
    del wandb.calls[:]
    resumed(folder, steps=4)
    assert wandb.calls[0][2]["id"] == given["id"] and [call[1] for call in wandb.calls[1:-1]] == [4, 4]
    del wandb.calls[:]
    trained(tmp_path, tables)
    assert wandb.calls[0][2]["id"] != given["id"], "another run is another run"


def test_wandb_that_does_not_start_says_what_to_do(tmp_path: Path, wandb: Any) -> None:
    wandb.failing.append(True)
    with pytest.raises(GencliError, match="wandb did not start: api_key not configured") as raised:
        trained(tmp_path, table("ddpm", track="wandb"))
    assert "WANDB_MODE=offline" in raised.value.hint and "wandb login" in raised.value.hint
