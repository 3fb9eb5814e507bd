"""Programs in benchmarks/ and helpers beside the tests can be imported; caches go to a temporary home."""

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for folder in (HERE, HERE.parents[1]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("GENCLI_HOME", str(tmp_path / "home"))
