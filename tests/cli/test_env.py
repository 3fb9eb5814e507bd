"""`gencli env`: true facts on one screen, and nothing that should not stand in a bug report."""

from __future__ import annotations

import json
import os
import platform
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import Shell

from gencli import __version__, device, home, registry
from gencli.report import environment
from gencli.training import precision

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]


def named(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=!~ \[]", line)[0] for line in lines}


def test_the_packages_are_those_of_the_project() -> None:
    assert {*environment.NEEDED} == named(PROJECT["dependencies"])
    extras = PROJECT["optional-dependencies"]
    assert {*environment.OPTIONAL} == named([*extras["peers"], *extras["track"], *extras["export"], *extras["shards"]])


def test_the_facts_are_true(shell: Shell) -> None:
    found: dict[str, Any] = shell.fine("env", "--json").document
    assert found["schema"] == 1 and found["gencli"] == __version__ and found["system"] == platform.platform()
    assert found["packages"]["torch"] == version("torch")
    assert found["cpu"]["threads"] == torch.get_num_threads()
    assert found["cpu"]["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS")
    assert found["cpu"]["usable"] <= found["cpu"]["cores"] and found["memory"]["free"] <= found["memory"]["total"]
    assert found["precision"]["unet"] == precision.resolve("auto", device.default(), "unet")
    assert {name for name, here in found["data"].items() if here} >= {"digits", "toy2d"}
    assert not found["data"]["mnist"] and found["plugins"] == []


@pytest.mark.parametrize(
    ("kind", "shown"), [("cpu-bf16", "bf16 with bidirectional-transformer, dit, transformer, unet"), ("cpu", "fp32")]
)
def test_fast_bf16_decides_what_auto_means(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, kind: str, shown: str
) -> None:
    monkeypatch.setattr(device, "default", lambda: torch.device("cpu"))
    monkeypatch.setattr(device, "kind", lambda where: kind)
    out = shell.fine("env").out
    assert f"--precision auto\t{shown}" in out
    assert f"fast bf16 on cpu\t{'yes' if kind == 'cpu-bf16' else 'no'}" in out


def test_an_unused_gpu_is_explained(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "default", lambda: torch.device("cpu"))
    monkeypatch.setattr(device, "unused_gpu", lambda: "there is a GPU, but")
    assert "device\tcpu (there is a GPU, but)" in shell.fine("env").out
    monkeypatch.setattr(device, "unused_gpu", lambda: "")
    assert "device\tcpu (no GPU was found)" in shell.fine("env").out


def test_what_is_kept_is_counted(shell: Shell, runs: Path) -> None:
    file = home.home() / "cache" / "features" / f"{'0' * 24}.npy"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x" * 1000)
    (home.home() / "data" / "cifar10").mkdir(parents=True)
    (home.home() / "data" / "cifar10" / "cifar-10-binary.tar.gz").write_bytes(b"x")
    found = shell.fine("env", "--json").document
    assert found["caches"]["features"] == 1000 and found["caches"]["data"] == 1 and found["data"]["cifar10"]
    assert found["runs"][0]["runs"] == 4 and found["runs"][0]["size"] > 10_000


def test_it_is_one_screen_without_secrets_and_names_the_users_folder_by_a_tilde(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GENCLI_HOME", str(tmp_path / "there"))
    monkeypatch.setenv("WANDB_API_KEY", "hunter2")
    done = shell.fine("env")
    document = shell.fine("env", "--json").document
    for text in (done.out, json.dumps(document)):
        assert "hunter2" not in text and str(tmp_path) not in text and "~/there" in text
    assert len(done.out.splitlines()) <= 24 and {line.count("\t") for line in done.out.splitlines()} == {1}
    assert done.err.splitlines() == ["next: gencli list"] and shell.fine("env", "-q").out == ""


def test_an_absent_package_is_said(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "OPTIONAL", ("surely-not-installed",))
    assert "optional\tsurely-not-installed absent" in shell.fine("env").out


def test_every_published_data_set_is_looked_for() -> None:
    assert {entry.name for entry in environment._published()} == {*registry.entries("data")} - {"folder"}
