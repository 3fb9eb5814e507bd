"""`gencli runs`: true sizes in spite of hard links, and removals that are whole, refused, or not there."""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from shell import Shell, copied

from gencli import files, home
from gencli import runs as found
from gencli.cli import console
from gencli.errors import GencliError
from gencli.training import tidy


def names(shell: Shell) -> list[str]:
    return [row["run"] for row in shell.fine("runs", "--json").document["runs"]]


def free(path: Path) -> int:
    """Bytes that the files of a folder give back, by deleting a copy of what links to what."""
    seen: dict[int, list[os.stat_result]] = {}
    for file in path.rglob("*"):
        if file.is_file():
            seen.setdefault(file.stat().st_ino, []).append(file.stat())
    return sum(all_[0].st_size for all_ in seen.values() if all_[0].st_nlink == len(all_))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A person at a terminal, whose answer a test gives with `says`."""
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    return monkeypatch


def says(patch: pytest.MonkeyPatch, text: str) -> None:
    answer = io.StringIO(text)
    answer.isatty = lambda: True  # type: ignore[method-assign]
    patch.setattr("sys.stdin", answer)


# ---------------------------------------------------------------------------------------------------------------- sizes


def test_space_counts_a_file_once_and_frees_only_what_has_no_other_name(tmp_path: Path) -> None:
    inner = tmp_path / "run"
    inner.mkdir()
    (inner / "alone").write_bytes(b"x" * 1000)
    (inner / "twice").write_bytes(b"x" * 200)
    os.link(inner / "twice", inner / "twice-too")
    (inner / "shared").write_bytes(b"x" * 30)
    os.link(inner / "shared", tmp_path / "elsewhere")
    (inner / "away").symlink_to(tmp_path)
    assert files.space(inner) == files.Space(1230, 1200)
    assert files.space(inner, tmp_path / "elsewhere") == files.Space(1230, 1230)
    assert files.space(inner / "alone", inner / "absent") == files.Space(1000, 1000)
    (tmp_path / "link").symlink_to(inner)
    assert files.space(tmp_path / "link") == files.Space(0, 0), "removing a link frees nothing"


def test_runs_are_listed_newest_first_with_their_sizes(shell: Shell, runs: Path) -> None:
    document = shell.fine("runs", "--json").document
    assert [row["run"] for row in document["runs"]] == [
        row["run"] for row in shell.fine("list", "runs", "--json").document["runs"]
    ]
    created = [row["created"] for row in document["runs"]]
    assert created == sorted(created, reverse=True) and document["schema"] == 1
    for row in document["runs"]:
        assert row["slim_frees"] == free(Path(row["folder"]) / "train") > 0
        assert row["size"] > row["slim_frees"]
    lines = [line.split("\t") for line in shell.fine("runs").out.splitlines()]
    assert lines[0] == ["run", "model", "data", "step", "created", "size", "slim frees", "folder"]
    assert lines[1][5].endswith("kB") and {len(line) for line in lines} == {8}


def test_the_next_command_slims_the_run_that_gives_most(shell: Shell, runs: Path) -> None:
    rows = shell.fine("runs", "--json").document["runs"]
    best = max(rows, key=lambda row: row["slim_frees"])["run"]
    assert shell.fine("runs").err.splitlines()[-1] == f"next: gencli runs slim {best}"


def test_no_runs_is_said(shell: Shell) -> None:
    done = shell.fine("runs")
    assert "no runs in checkpoints" in done.err and done.out == ""


# --------------------------------------------------------------------------------------------------------------- removal


def test_rm_removes_exactly_the_named_runs_and_says_what_became_free(shell: Shell, runs: Path) -> None:
    will = free(runs / "pixelcnn-digits") + free(runs / "ddpm-digits")
    done = shell.fine("runs", "rm", "pixelcnn-digits", "checkpoints/ddpm-digits", "ddpm-digits", "--yes")
    assert done.out.splitlines() == [str(runs / "pixelcnn-digits"), str(runs / "ddpm-digits")]
    assert f"{files.as_size(will)} freed" in done.err and done.err.splitlines()[-1] == "next: gencli runs"
    assert sorted(p.name for p in runs.iterdir()) == ["gated-pixelcnn-digits", "vqvae-digits"]
    document = shell.fine("runs", "rm", "vqvae-digits", "--yes", "--json").document
    assert document["removed"] == [str(runs / "vqvae-digits")] and document["freed"] > 0


def test_a_run_with_a_removed_codec_keeps_working(shell: Shell, made: Path, tmp_path: Path) -> None:
    runs = tmp_path / "checkpoints"
    shutil.copytree(made / "checkpoints", runs)
    prior, codec = runs / "gated-pixelcnn-digits", runs / "vqvae-digits"
    (prior / "codec" / "model.safetensors").unlink()
    os.link(codec / "model.safetensors", prior / "codec" / "model.safetensors")  # as `nest` makes it
    will, weights = free(codec), (codec / "model.safetensors").stat().st_size
    done = shell.fine("runs", "rm", "vqvae-digits", "--yes", "--json").document
    assert done["freed"] == will <= files.space(prior).size + will - weights
    again = copied(made / "checkpoints" / "vqvae-digits", codec)
    said = shell.fine("runs", "rm", "vqvae-digits", "--yes").err
    assert "run gated-pixelcnn-digits has its own copy of vqvae-digits and keeps working" in said
    assert not again.exists()
    shell.fine("sample", "gated-pixelcnn-digits", "-n", "2")


def test_an_interrupted_removal_leaves_no_run_and_is_swept_up_by_the_next(
    shell: Shell, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, **_: object) -> None:
        (path / "ddpm-digits" / "model.safetensors").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tidy.shutil, "rmtree", killed)
        assert shell("runs", "rm", "ddpm-digits", "--yes").code == 130
    assert list(runs.glob(".removing-*/ddpm-digits/config.json")), "the test must have interrupted something"
    assert "ddpm-digits" not in names(shell)
    shell("sample", "ddpm-digits").fails("ddpm-digits")
    shell.fine("runs", "rm", "pixelcnn-digits", "--yes")
    assert not list(runs.glob(".*"))


def test_a_damaged_run_can_be_removed(shell: Shell, runs: Path) -> None:
    (runs / "ddpm-digits" / "config.json").write_text("{")
    shell.fine("runs", "rm", "ddpm-digits", "--yes")
    assert not (runs / "ddpm-digits").exists()


# --------------------------------------------------------------------------------------------------------------- slimming


def test_a_slim_run_samples_and_evaluates_the_same_and_is_not_resumed(shell: Shell, runs: Path) -> None:
    run = runs / "ddpm-digits"
    sample = ["sample", "ddpm-digits", "-n", "2", "--steps", "2", "-q", "--exact"]
    before = [p.read_bytes() for p in sorted(Path(shell.fine(*sample).out.strip()).glob("0*.png"))]
    will, whole = free(run / "train"), files.space(run).size
    done = shell.fine("runs", "slim", "ddpm-digits", "--yes")
    assert "cannot be resumed" in done.err and f"{files.as_size(will)} freed" in done.err
    assert done.out.strip() == str(run) and done.err.splitlines()[-1] == "next: gencli sample ddpm-digits"
    assert not (run / "train").exists() and files.space(run).size == whole - will
    after = [p.read_bytes() for p in sorted(Path(shell.fine(*sample).out.strip()).glob("0*.png"))]
    assert after == before
    shell.fine("eval", "fid", "--features", "pixels", "-n", "20", "--steps", "1", "-c", "ddpm-digits")
    for args in (["--resume"], ["--resume", "ddpm-digits"]):
        shell("train", "ddpm", *args).fails("ddpm-digits was slimmed at step 2", "gencli sample ddpm-digits")
    assert not (run / "train").exists()
    assert shell.fine("runs", "slim", "ddpm-digits", "--yes", "--json").document["freed"] == 0


def test_the_size_freed_is_true_though_the_weights_are_linked(shell: Shell, runs: Path, tmp_path: Path) -> None:
    run = runs / "ddpm-digits"
    newest = max((run / "train").glob("step-*")) / "average.safetensors"
    newest.unlink()
    os.link(run / "model.safetensors", newest)  # as saving makes it; the copies for tests are apart
    naive = sum(p.stat().st_size for p in (run / "train").rglob("*") if p.is_file())
    document = shell.fine("runs", "slim", "ddpm-digits", "--yes", "--json").document
    assert document["freed"] == naive - (run / "model.safetensors").stat().st_size
    assert document["slimmed"] == [str(run)]


def test_a_run_without_weights_is_not_slimmed_away(shell: Shell, runs: Path) -> None:
    (runs / "ddpm-digits" / "model.safetensors").unlink()
    shell("runs", "slim", "ddpm-digits", "--yes").fails("no weights", "gencli runs rm ddpm-digits")
    assert (runs / "ddpm-digits" / "train").is_dir()


# --------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("verb", ["rm", "slim"])
def test_what_may_not_be_changed_is_refused_before_anything_is(shell: Shell, runs: Path, verb: str) -> None:
    shipped = copied(runs / "ddpm-digits", runs.parent / "no-shipped" / "came-along")
    lock = runs / "pixelcnn-digits" / "train" / "lock.json"
    cases = {
        "came-along": "read-only",
        str(shipped): "read-only",
        "checkpoints/gated-pixelcnn-digits/codec": "part of run gated-pixelcnn-digits",
        "ddpm-digit": "ddpm-digits",
        "ddpm": "no run 'ddpm'",  # a model's newest run is not meant by its name here
        "checkpoints": "no run 'checkpoints'",
    }
    for name, why in cases.items():
        shell("runs", verb, "vqvae-digits", name, "--yes").fails(why)
    shell("runs", verb).fails("needs a run")
    lock.write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))
    shell("runs", verb, "pixelcnn-digits", "--yes").fails("is being trained by process 1")
    assert len(names(shell)) == 5 and all((run / "train" / "step-00000002").is_dir() for run in runs.iterdir())


@pytest.mark.parametrize("answer", ["", "\n", "n\n", "yess\n"])
def test_a_person_is_asked_and_anything_but_yes_changes_nothing(
    shell: Shell, runs: Path, terminal: pytest.MonkeyPatch, answer: str
) -> None:
    says(terminal, answer)
    done = shell("runs", "rm", "ddpm-digits")
    assert done.code == 1 and "remove ddpm-digits, which frees" in done.err and "nothing was changed" in done.err
    assert "ddpm-digits" in names(shell) and done.out == ""


def test_yes_means_yes(shell: Shell, runs: Path, terminal: pytest.MonkeyPatch) -> None:
    says(terminal, "y\n")
    assert "ddpm-digits" in shell.fine("runs", "rm", "ddpm-digits").out
    says(terminal, "YES\n")
    assert "vqvae-digits" in shell.fine("runs", "slim", "vqvae-digits").out
    assert "ddpm-digits" not in names(shell)


def test_without_a_terminal_only_the_flag_agrees(shell: Shell, runs: Path) -> None:
    for verb in ("rm", "slim"):
        done = shell("runs", verb, "ddpm-digits", "-q")
        done.fails("ddpm-digits", "add --yes")
    assert "error" in shell("runs", "rm", "ddpm-digits", "--json").document
    assert "ddpm-digits" in names(shell)


def test_a_link_to_a_run_is_removed_as_a_link(shell: Shell, runs: Path, tmp_path: Path) -> None:
    (runs / "ddpm-digits").rename(tmp_path / "far")
    (runs / "ddpm-digits").symlink_to(tmp_path / "far")
    assert shell.fine("runs", "rm", "ddpm-digits", "--yes", "--json").document["freed"] == 0
    assert not (runs / "ddpm-digits").is_symlink() and (tmp_path / "far" / "config.json").is_file()


def test_runs_at_home_are_removed_too(shell: Shell, made: Path) -> None:
    copied(made / "checkpoints" / "ddpm-digits", home.home() / "checkpoints" / "far")
    shell.fine("runs", "rm", "far", "--yes")
    assert found.every() == []
    with pytest.raises(GencliError):
        tidy.chosen(["far"])
