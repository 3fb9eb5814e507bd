"""Two processes on a CPU equal one: training every model, resuming, sampling, evaluating, stopping and failing.

The processes are real; a launcher's part, which is a few variables of the environment, is played here.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import SLOW
from pair import apart, names, walk, walked
from safetensors.torch import load_file
from tiny import logged, resumed, table, toml, trained
from zygote import Process, Zygote

from gencli.core import Rng, all_reduce, broadcast, gather, greatest, main_first, world
from gencli.errors import GencliError
from gencli.evaluation.generate import Request, divided
from gencli.launch import RANKS, SIZES, World, launched

posix = pytest.mark.skipif(sys.platform == "win32", reason="forks")

ALONE = """
import os, signal
os.environ.update({env})
signal.alarm(240)  # a hang ends
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Pair:
    """A command on two processes."""

    def __init__(self, zygote: Zygote, cwd: Path, *args: str, patches: tuple[str, str] = ("", "")) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        address = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.both: list[Process] = []
        for rank, patch in enumerate(patches):
            env = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            self.both.append(zygote.start(cwd, *args, patch=ALONE.format(env=env) + patch))

    def wait(self) -> list[int]:
        """Both exit codes."""
        return [process.wait() for process in self.both]

    def fine(self) -> Pair:
        """Both end well, and the second says nothing."""
        assert self.wait() == [0, 0], [process.stderr for process in self.both]
        assert self.both[1].stdout == ""
        assert self.both[1].stderr == "", self.both[1].stderr
        return self


def only(folder: Path, pattern: str = "*") -> Path:
    (found,) = folder.glob(pattern)
    return found


# ------------------------------------------------------------------------------------------------------------------ training


@pytest.fixture(scope="module")
def walks(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model trained by two processes, and by this one."""
    out = tmp_path_factory.mktemp("walks")
    there = Pair(zygote, out, patches=(f"import pair; pair.walk_as_one_of_two({str(out)!r})",) * 2)
    walk(out)
    there.fine()
    return out


def in_steps(facts: dict[str, Any]) -> list[list[int]]:
    """The items of each step, which come in two micro-batches."""
    parts = facts["items"]
    return [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]


@posix
@pytest.mark.parametrize("name", names())
def test_two_processes_train_as_one_does(walks: Path, name: str) -> None:
    (one, facts), (first, facts_first), (second, facts_second) = (
        walked(walks, *place, name) for place in ((0, 1), (0, 2), (1, 2))
    )
    for key, value in first.items():
        assert torch.equal(value, second[key]), f"the processes differ in {key}"
    assert facts_first["losses"] == facts_second["losses"]
    halves = zip(in_steps(facts_first), in_steps(facts_second), strict=True)
    assert [a + b for a, b in halves] == in_steps(facts)
    if facts["couples"]:
        return
    off = apart(first, one)
    assert max(off.values()) < 1e-5, max(off, key=lambda key: off[key])
    for ours, theirs in zip(facts_first["losses"], facts["losses"], strict=True):
        for key in theirs:
            if not key.startswith(("perplexity", "batch_perplexity", "usage")):  # of a process's own codes
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-5), key


@posix
def test_the_comparison_sees_other_numbers(walks: Path) -> None:
    one, _ = walked(walks, 0, 1, "plain")
    other, _ = walked(walks, 0, 1, "normed")
    assert (
        max(apart({k: v for k, v in other.items() if k in one}, {k: one[k] for k in one if k in other}).values()) > 1e-2
    )


@posix
def test_a_run_of_two_processes_resumes_on_one_and_the_reverse(zygote: Zygote, tmp_path: Path) -> None:
    halves, whole = {"steps": 4, "save_every": 4, "lr": 0.01}, {"steps": 8, "save_every": 8}
    file = str(toml(tmp_path / "tiny.toml", table("vqvae", **halves)))
    Pair(zygote, tmp_path / "two", "train", file).fine()
    two = only(tmp_path / "two" / "checkpoints")
    one = trained(tmp_path / "one", table("vqvae", **halves))
    reference = trained(tmp_path / "reference", table("vqvae", **{**halves, **whole}))
    (note,) = [event.text for event in resumed(two, **whole) if event.text.startswith("resumed")]
    assert note == "resumed at step 4"
    more = ["train", "vqvae", "--resume", str(one), "--steps", "8", "--save-every", "8"]
    Pair(zygote, tmp_path, *more).fine()
    for folder in (two, one):
        assert logged(folder) == list(range(1, 9))
        assert not (folder / "train" / "lock.json").exists()
        for name in ("raw", "average", "optim"):
            file = f"train/step-00000008/{name}.safetensors"
            off = apart(load_file(folder / file), load_file(reference / file))
            assert max(off.values()) < 1e-5, (folder, name, max(off, key=lambda key: off[key]))


@posix
def test_two_processes_train_on_codes_that_the_first_encodes(zygote: Zygote, tmp_path: Path) -> None:
    codec = trained(tmp_path / "codec", table("vqvae", steps=2))
    file = str(toml(tmp_path / "tiny.toml", table("gated-pixelcnn", steps=2)))
    for name in ("one", "two"):
        asked = ["train", file, "--codec", str(codec), "--name", name]
        if name == "two":
            Pair(zygote, tmp_path, *asked).fine()
        else:
            assert zygote.run(tmp_path, *asked)[0] == 0
    one, two = (tmp_path / "checkpoints" / name for name in ("one", "two"))
    assert max(apart(load_file(two / "model.safetensors"), load_file(one / "model.safetensors")).values()) < 1e-5
    assert (two / "codec" / "model.safetensors").is_file()


# ------------------------------------------------------------------------------------------------------ sampling, evaluating


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny ddpm."""
    cwd = tmp_path_factory.mktemp("run")
    trained(cwd / "checkpoints", table("ddpm", steps=2, lr=0.05))
    return cwd


def pictures(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.png"))}


@posix
def test_seven_images_from_two_processes_are_those_of_one(zygote: Zygote, run: Path) -> None:
    asked = ["sample", "ddpm-digits", "-n", "7", "--seed", "3", "--steps", "4", "--exact", "--batch-size", "3"]
    asked += ["--trajectory", "--out"]
    pair = Pair(zygote, run, *asked, "two").fine()
    assert pair.both[0].stdout.splitlines() == ["two"]
    assert zygote.run(run, *asked, "one")[0] == 0
    one, two = pictures(run / "one"), pictures(run / "two")
    assert len(one) == 8 and len(set(one.values())) == 8, "seven that differ, and the grid"
    assert one == two
    assert (run / "one" / "trajectory.webp").read_bytes() == (run / "two" / "trajectory.webp").read_bytes()
    a, b = (json.loads((run / name / "samples.json").read_text()) for name in ("one", "two"))
    assert a | {"seconds": 0} == b | {"seconds": 0}


@posix
def test_without_exact_every_process_has_its_part(zygote: Zygote, run: Path) -> None:
    Pair(zygote, run, "sample", "ddpm-digits", "-n", "7", "--steps", "4", "--out", "parts").fine()
    document = json.loads((run / "parts" / "samples.json").read_text())
    assert document["batch"] == 4 and [row["seed"] for row in document["items"]] == list(range(7))


def test_a_request_is_divided_so_that_nobody_idles_and_exact_ones_keep_their_batches() -> None:
    assert divided(Request(range(7)), 2).micro == 4
    assert divided(Request(range(1000)), 2).micro == 64
    assert divided(Request(range(7)), 1).micro == 7
    assert divided(Request(range(7), exact=True), 2).micro == 64


@posix
def test_a_metric_of_two_processes_is_that_of_one_and_stands_once(zygote: Zygote, run: Path) -> None:
    asked = [
        "eval",
        "fid",
        "-n",
        "40",
        "--features",
        "random",
        "--steps",
        "4",
        "--batch-size",
        "8",
        "-c",
        "ddpm-digits",
    ]
    pair = Pair(zygote, run, *asked, "--json").fine()
    (two,) = json.loads(pair.both[0].stdout)["results"]
    code, process = zygote.run(run, "cache", "--clear", "features", "--yes", "--json")
    assert code == 0 and json.loads(process.stdout)["freed"] > 0, "else the second would be the first's features"
    code, process = zygote.run(run, *asked, "--json")
    assert code == 0, process.stderr
    (one,) = json.loads(process.stdout)["results"]
    assert two["value"] == one["value"] and two["receipt"] == one["receipt"]
    stored = (run / "checkpoints" / "ddpm-digits" / "evaluations.jsonl").read_text().splitlines()
    assert len(stored) == 2


# --------------------------------------------------------------------------------------------------------- stopping, failing

NAN = """
from gencli.models.autoregressive.pixelcnn import PixelCNN
real = PixelCNN.loss
def loss(self, batch, turn):
    losses = real(self, batch, turn)
    return {**losses, "loss": losses["loss"] * float("nan")} if turn.step == 2 else losses
PixelCNN.loss = loss
"""


def long(cwd: Path) -> list[str]:
    cwd.mkdir(parents=True, exist_ok=True)
    return ["train", str(toml(cwd / "tiny.toml", table("pixelcnn", steps=4000, save_every=4000)))]


@posix
def test_a_signal_to_either_process_stops_both_after_one_save(zygote: Zygote, tmp_path: Path) -> None:
    for target in (0, 1):
        cwd = tmp_path / str(target)
        pair = Pair(zygote, cwd, *long(cwd), patches=(SLOW, SLOW))
        pair.both[0].until(lambda cwd=cwd: any(cwd.glob("checkpoints/*/train/lock.json")))
        time.sleep(0.5)
        pair.both[target].kill(signal.SIGINT)
        assert pair.wait() == [130, 130], [process.stderr for process in pair.both]
        said = pair.both[0].stderr
        assert said.count("saved at step") == 1 and said.count("stopped at step") == 1 and "2 processes" in said
        assert pair.both[1].stderr == "" and pair.both[1].stdout == ""
        folder = only(cwd / "checkpoints")
        state = only(folder / "train", "step-*")
        assert logged(folder)[-1] == int(state.name.removeprefix("step-")) > 0


@posix
def test_a_loss_that_is_not_finite_on_one_process_ends_both(zygote: Zygote, tmp_path: Path) -> None:
    pair = Pair(zygote, tmp_path, *long(tmp_path), patches=("", NAN))
    assert pair.wait() == [1, 1]
    assert pair.both[0].stderr.count("error: the loss is not finite at step 3") == 1
    assert pair.both[1].stderr == ""
    bundle = json.loads(only(only(tmp_path / "checkpoints") / "train", "not-finite-3.json").read_text())
    assert len(bundle["items"]) == 4 and bundle["layer"] == "the loss", "the second process's half of eight"


@posix
def test_a_process_that_vanishes_ends_the_other(zygote: Zygote, tmp_path: Path) -> None:
    for target, codes in ((1, [1, -signal.SIGKILL]), (0, [-signal.SIGKILL, 1])):
        cwd = tmp_path / str(target)
        pair = Pair(zygote, cwd, *long(cwd))
        pair.both[0].until(lambda cwd=cwd: any(cwd.glob("checkpoints/*/train/lock.json")))
        time.sleep(0.3)
        pair.both[target].kill()
        assert pair.wait() == codes
        said = pair.both[1 - target].stderr
        assert ("error: another process of this command ended" in said) == (target == 1)
        assert "Traceback" not in said


@posix
def test_a_mistake_is_named_once(zygote: Zygote, tmp_path: Path) -> None:
    odd = str(toml(tmp_path / "tiny.toml", table("pixelcnn", batch_size=7)))
    for args, words in (
        (["train", "pixelcnn", "--steps", "-1"], "steps is -1"),
        (["train", odd], "batch size 7 cannot be split over 2 processes × 1 micro-batches"),
        (["eval", "fid", "-c", "nothing"], "no run 'nothing'"),
    ):
        pair = Pair(zygote, tmp_path, *args)
        assert pair.wait() == [2, 2], args
        assert pair.both[0].stderr.count("error:") == 1 and words in pair.both[0].stderr, pair.both[0].stderr
        assert pair.both[1].stderr == "", args


@posix
def test_other_commands_are_done_by_the_first_process_alone(zygote: Zygote, tmp_path: Path) -> None:
    pair = Pair(zygote, tmp_path, "list", "models").fine()
    assert "ddpm" in pair.both[0].stdout


# ------------------------------------------------------------------------------------------------------------- the launcher


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for key in (*RANKS, *SIZES, "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(key, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, World()),
        ({"RANK": "1", "WORLD_SIZE": "2"}, World(1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_SIZE": "4"}, World(3, 4)),
        ({"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, World()),
        ({"RANK": "5"}, World()),
        ({"MASTER_ADDR": "x", "MASTER_PORT": "1"}, World()),
    ],
)
def test_the_environment_says_which_process_this_is(
    bare_environment: pytest.MonkeyPatch, env: dict[str, str], expected: World
) -> None:
    for key, value in env.items():
        bare_environment.setenv(key, value)
    assert launched() == expected


def test_accelerate_that_starts_one_process_instead_of_several_is_named(bare_environment: pytest.MonkeyPatch) -> None:
    env = {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for key, value in env.items():
        bare_environment.setenv(key, value)
    with pytest.raises(GencliError, match="started one") as caught:
        launched()
    assert "torchrun --nproc-per-node" in caught.value.hint


def test_alone_nothing_is_exchanged() -> None:
    value: Any = torch.ones(3)
    assert world() == World() and all_reduce(value) is value and value.tolist() == [1, 1, 1]
    assert broadcast(value) is value and gather(value) == [value] and greatest(-3) == -3
    with main_first():
        pass
    assert len(Rng.rows([1, 2])) == 2
