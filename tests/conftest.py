"""What holds in every test: one thread, no sockets, an own cache, and no test that takes long."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["OMP_WAIT_POLICY"] = "PASSIVE"  # read when torch is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from gencli.cli import console

LIMIT = float(os.environ.get("GENCLI_TEST_SECONDS", "20"))  # 5 on a quiet machine; a busy one needs room

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def alone(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty cache, no network, the same random state, and the folder and console put back."""
    monkeypatch.setenv("GENCLI_HOME", str(tmp_path_factory.mktemp("gencli-home", numbered=True)))
    connect = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None):  # workers of a data loader pass files over local ones
            raise OSError(f"a test tried to reach {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    torch.manual_seed(0)
    before = Path.cwd()
    yield
    os.chdir(before)
    vars(console.state).update(vars(console.State()))


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A process that forks the commands of a test file, with a cache of their own."""
    from zygote import Zygote

    made = Zygote(tmp_path_factory.mktemp("home"))
    yield made
    made.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A test that passes but takes longer than the limit fails; what needs minutes is marked slow."""
    outcome: Any = yield
    report = outcome.get_result()
    if too_long(report.when, report.outcome, call.duration, item.get_closest_marker("slow") is not None):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} took {call.duration:.1f} s, the limit is {LIMIT:g} s: make it smaller or slow"


def too_long(when: str, outcome: str, seconds: float, slow: bool, limit: float = LIMIT) -> bool:
    """Whether a test must fail for its duration alone."""
    return when == "call" and outcome == "passed" and not slow and seconds > limit
