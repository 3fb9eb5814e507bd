"""The guards around every test do guard."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import too_long

from gencli.home import home

SLEEPER = """
import pytest, time

def test_short(): pass
def test_long(): time.sleep(0.3)

@pytest.mark.slow
def test_slow(): time.sleep(0.3)
"""


def test_no_test_reaches_the_network() -> None:
    with pytest.raises(OSError, match="tried to reach"), socket.socket() as plug:
        plug.connect(("192.0.2.1", 80))


def test_the_cache_is_empty_and_temporary() -> None:
    assert home().is_dir() and not list(home().iterdir()) and home() != Path.home() / ".cache" / "gencli"


def test_only_calls_that_pass_and_are_not_slow_are_timed() -> None:
    assert too_long("call", "passed", 5.1, False, 5)
    assert not too_long("call", "passed", 4.9, False, 5)
    assert not too_long("call", "passed", 5.1, True, 5)
    assert not too_long("setup", "passed", 5.1, False, 5)
    assert not too_long("call", "skipped", 5.1, False, 5)


def test_a_test_over_the_limit_fails(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_bytes((Path(__file__).parent / "conftest.py").read_bytes())
    (tmp_path / "test_it.py").write_text(SLEEPER)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: x\n")
    line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(tmp_path)]
    done = subprocess.run(
        line, cwd=tmp_path, env={**os.environ, "GENCLI_TEST_SECONDS": "0.2"}, capture_output=True, text=True
    )
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "test_long took 0.3 s, the limit is 0.2 s" in done.stdout
