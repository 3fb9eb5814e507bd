"""SIGKILL at any instant and at every named point of a write: the run resumes, and ends as one that was left alone."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from faulty import FAMILIES, RANDOM, Life, alone, places
from zygote import Zygote

from gencli import crash

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

EACH, STEPS = 42, 10  # of the soak: kills a family, steps of a run
TOTAL, LEAST, INSIDE = 240, 30, 0.25


@pytest.mark.parametrize("number", range(len(FAMILIES)), ids=list(FAMILIES))
def test_a_run_killed_at_several_points_ends_as_one_left_alone(zygote: Zygote, tmp_path: Path, number: int) -> None:
    family = list(FAMILIES)[number]
    expected, seconds = alone(zygote, tmp_path / "alone", family)
    life = Life(zygote, tmp_path / "life", family, expected)
    mine = list(crash.POINTS)[number :: len(FAMILIES)]  # together the families meet every point
    for point in mine:
        twice = point.startswith("file")
        assert life.at(point, 3 if twice else 1), f"nothing came by {point}"
    life.anywhere(random.Random(number), 0.3 * seconds)
    life.finish()
    assert all(life.kills[point] for point in mine)


@pytest.mark.slow
def test_hundreds_of_kills(zygote: Zygote, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    counts: dict[str, Counter[str]] = {}
    for family in FAMILIES:
        counts[family] = _soaked(zygote, tmp_path / family, family)
        with capsys.disabled():
            print(f"\n{family}: {counts[family].total()} kills: {dict(counts[family])}", flush=True)
    by_point = sum(counts.values(), Counter())
    total = by_point.total()
    inside = sum(by_point[point] for point in crash.WRITING)
    with capsys.disabled():
        print(f"\n{total} kills, {inside} of them inside a write; every run ended as one left alone")
        for point, found in by_point.most_common():
            print(f"  {point}: {found}")
    assert total >= TOTAL and inside >= INSIDE * total
    assert all(found.total() >= LEAST for found in counts.values())
    assert all(by_point[point] for point in [*crash.POINTS, RANDOM])


def _soaked(zygote: Zygote, cwd: Path, family: str) -> Counter[str]:
    """Lives of a family until it has been killed often enough: half at points, half at any moment."""
    chance = random.Random(family)
    expected, seconds = alone(zygote, cwd / "alone", family, STEPS)
    where, kills = places(chance), Counter[str]()
    for number in range(10 * EACH):
        life = Life(zygote, cwd / str(number), family, expected, STEPS)
        for _ in range(8):
            if not (life.anywhere(chance, 0.5 * seconds) if chance.random() < 0.5 else life.at(*next(where))):
                break  # it has ended before
        life.finish()
        kills += life.kills
        if kills.total() >= EACH:
            return kills
    raise AssertionError(f"{family} was killed {kills.total()} times only")


# ------------------------------------------------------------------------------------------------------------- the variable


def _told(fault: str) -> subprocess.CompletedProcess[str]:
    code = "from gencli import crash; print('before', flush=True); crash.point('file.half'); print('after')"
    env = {"GENCLI_FAULT": fault} if fault else {}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


def test_the_variable_arms_one_point_and_nothing_else() -> None:
    assert _told("file.half").returncode == -9 and _told("file.half").stdout == "before\n"
    assert "No space left" in _told("file.half:1:full").stderr
    for fault in ("", "file.half:2", "file.kept"):
        assert _told(fault).stdout == "before\nafter\n"


@pytest.mark.parametrize(
    "fault", ["nowhere", "file.half:0", "file.half:x", "file.half:1:burn", "a:1:kill:2", "step.begun:1:full"]
)
def test_a_variable_that_means_nothing_is_said(fault: str) -> None:
    done = _told(fault)
    assert done.returncode == 1 and f"GENCLI_FAULT is '{fault}'" in done.stderr and "Traceback" not in done.stderr
