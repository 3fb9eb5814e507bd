"""Hostile and careless input: whatever a file or an option holds, a command ends in time, in one line, and harms nothing.

Each case is one command in a fork of its own (`fuzzing.Bench`), which may take 5 s of the CPU and 1 GiB, write in its own
folder alone, start no program and look up no name of a pickle; its exit code is 0 or 2. `make soak` runs 10,000 of them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fuzzing import ALSO, Bench
from hostile import makers, pickles, stocked
from zygote import Zygote

from gencli.converters import _official, _pickles

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc of Linux")

QUICK, LONG = 4, 10_000
KINDS = (
    *("safetensors-run", "safetensors-file", "json-config", "json-beside", "json-receipt", "json-diffusers", "toml"),
    *("images", "image", "zip", "npz", "pickle", "folder-images", "folder-run", "options"),
)
MORE = {"options": 6, "pickle": 3, "safetensors-file": 2, "json-config": 2}  # shares of the long run; else 1
KNOWN = (  # cases that once failed
    *("json-config-3", "json-config-33", "json-diffusers-2", "json-diffusers-10", "json-receipt-7"),
    *("json-receipt-33", "json-beside-5", "toml-12", "toml-23", "toml-28"),
    *("toml-52", "toml-96", "safetensors-file-1000", "safetensors-file-1112", "safetensors-file-1171"),
    *("pickle-1011", "safetensors-file-2", "safetensors-file-30", "image-6", "npz-11"),
    *("npz-15", "zip-6", "pickle-57", "options-19", "folder-run-1"),
    *("folder-run-24", "folder-run-37", "folder-run-1000", "json-config-1027", "json-config-1153"),
    *("json-beside-1019", "safetensors-run-1043", "safetensors-run-1044", "zip-1051", "safetensors-file-1117"),
    *("toml-1060", "toml-1069", "toml-1105", "pickle-1209", "json-diffusers-1103"),
    *("json-diffusers-1109", "json-diffusers-1113", "json-config-50103", "json-config-50239", "json-beside-50026"),
    *("options-1455",),
)


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs and files that the cases are made of."""
    return stocked(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A server of forks with everything imported that a case may need."""
    made = Zygote(tmp_path_factory.mktemp("home"), ALSO)
    made.run(tmp_path_factory.mktemp("first"), "--version")  # so that no case waits for its start
    yield made
    made.close()


@pytest.fixture
def bench(server: Zygote, stock: Path, tmp_path: Path) -> Bench:
    """Where cases are run."""
    return Bench(server, tmp_path / "cases", makers(stock))


def passed(bench: Bench, numbered: list[tuple[str, int]]) -> None:
    """Run cases, and show those that failed."""
    bench.run(numbered)
    assert not bench.failures, "\n\n".join([f"{len(bench.failures)} cases failed", *bench.failures[:20]])


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_input_of_every_kind_ends_in_one_line(bench: Bench, kind: str) -> None:
    passed(bench, [(kind, number) for number in range(QUICK)])
    assert sum(bench.counts.values()) == QUICK


@pytest.mark.parametrize("name", KNOWN)
def test_what_once_failed_does_so_no_more(bench: Bench, name: str) -> None:
    kind, _, number = name.rpartition("-")
    passed(bench, [(kind, int(number))])


def test_a_case_follows_from_its_kind_and_number(stock: Path, tmp_path: Path) -> None:
    from random import Random

    for kind, make in makers(stock).items():
        cases, found = [], []
        for part in ("a", "b"):
            (cwd := tmp_path / part / kind).mkdir(parents=True)
            cases.append(make(Random(f"{kind}-7"), cwd))
            found.append(sorted((str(p.relative_to(cwd)), p.lstat().st_size) for p in cwd.rglob("*")))
        assert cases[0] == cases[1] and found[0] == found[1], kind


def test_the_guard_ends_what_goes_beyond(server: Zygote, tmp_path: Path) -> None:
    import guarded

    inside = tmp_path / "inside"
    inside.mkdir()
    beyond = {
        "open('../canary', 'w')": guarded.OUTSIDE,
        "import os; os.mkdir('../canary')": guarded.OUTSIDE,
        "import os; os.symlink('../canary', 'link'); open('link', 'w')": guarded.OUTSIDE,
        "import os; os.system('true')": guarded.STARTED,
        "import pickle; pickle.loads(b'cos\\nmkdir\\n(Vcanary\\ntR.')": guarded.LOOKED_UP,
        "while True: pass": -24,
        "x = bytearray(2**31)": 70,
    }
    for code, expected in beyond.items():
        patch = f"import guarded; guarded.confine({str(inside)!r}, 1, 2**30)\n{code}"
        assert server.run(inside, "--version", patch=patch)[0] == expected, code
    assert not (tmp_path / "canary").exists() and not (inside / "canary").exists()


def test_the_names_that_a_pickle_may_say_are_these() -> None:
    reader: Any = _pickles._Reader(open("/dev/null", "rb"), Path("x"))  # noqa: SIM115, PTH123
    names = {f"{module}.{name}" for module, name in (*reader.known, *_pickles.INERT)}
    assert names == pickles.ALLOWED
    assert set(_official.BESIDE) - pickles.ALLOWED == {
        "argparse.Namespace",
        "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    }


@pytest.mark.slow
def test_ten_thousand_hostile_cases(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    kinds = [kind for kind in KINDS for _ in range(MORE.get(kind, 1))]
    rounds = [(kind, kinds[:i].count(kind)) for i, kind in enumerate(kinds)]
    each = [
        (kind, 1000 + turn * kinds.count(kind) + place)
        for turn in range(LONG // len(kinds) + 1)
        for kind, place in rounds
    ]
    bench.run(each[:LONG])
    with capsys.disabled():
        print("\n" + bench.table())
    framed = LONG - sum(count for (_, depth), count in bench.counts.items() if depth == "outer")
    assert not bench.failures, "\n\n".join([f"{len(bench.failures)} cases failed", *bench.failures[:50]])
    assert framed >= LONG / 2, f"only {framed} cases have a valid outer framing"
