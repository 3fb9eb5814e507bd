"""How every benchmark measures: two sides in turns, medians, the ratio within each turn, and each side's memory on its own.

A case has two sides that do the same work, `gencli` and the one it is measured against. They alternate A B B A …, so that
whatever else the machine does falls on both; the ratio is taken within a round. Peak memory is that of a process that
loads and runs one side alone. `outcome` holds what must agree, each figure with its limit.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Side = Callable[[], object]
Outcome = Mapping[str, tuple[float, float]]
"""What was found, and what it may be at most."""

KIB = 1 if sys.platform == "darwin" else 1024  # what ru_maxrss counts in


@dataclass(frozen=True)
class Case:
    """One comparison.

    Args:
        name: of the row.
        peer: what gencli is measured against.
        make: a side (`gencli` or `peer`) ready to run, loading nothing that only the other needs.
        rounds: how often each side is timed.
        outcome: figures that must agree, with their limits, from what each side returned last; may take minutes.
        aim: the ratio hoped for.
        memory: whether each side's peak memory is measured in a process of its own.
        calls: until a side holds all that it will.
        share: of the whole work that a side does in a call, where that is not all.
    """

    name: str
    peer: str
    make: Callable[[str], Side]
    rounds: int = 5
    outcome: Callable[[Any, Any], Outcome] = lambda ours, theirs: {}
    aim: float = 1.0
    memory: bool = True
    calls: int = 1
    share: Mapping[str, float] = field(default_factory=dict)


def measure(case: Case) -> dict[str, Any]:
    """Seconds of both sides, their ratio and its spread, and the outcome."""
    sides = {name: case.make(name) for name in ("gencli", "peer")}
    made = {name: side() for name, side in sides.items()}
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(case.rounds):
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            began = time.perf_counter()
            made[name] = sides[name]()
            taken[name].append((time.perf_counter() - began) / case.share.get(name, 1.0))
    ratios = sorted(peer / ours for ours, peer in zip(taken["gencli"], taken["peer"], strict=True))
    agreed = case.outcome(made["gencli"], made["peer"])
    outcome = {key: {"found": float(found), "limit": limit} for key, (found, limit) in agreed.items()}
    return {
        "name": case.name,
        "peer": case.peer,
        "seconds": {name: statistics.median(values) for name, values in taken.items()},
        "ratio": statistics.median(ratios),
        "spread": [ratios[0], ratios[-1]],
        "rounds": case.rounds,
        "aim": case.aim,
        "outcome": outcome,
    }


def peak(case: Case, name: str) -> int:
    """Bytes that this process, or the greatest it started, held at most after running one side."""
    side = case.make(name)
    for _ in range(case.calls):
        side()
    return KIB * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    model = next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    kept = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16")
    versions = {}
    for name in ("gencli", "torch", "diffusers", "clean-fid", "numpy", "scipy", "accelerate", "zuko", "torchdiffeq"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": model,
        "features": [flag for flag in kept if flag in flags],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "memory_gb": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1),
        "python": platform.python_version(),
        "versions": versions,
    }


def misses(row: Mapping[str, Any]) -> list[str]:
    """Outcomes of a row above their limits."""
    return [
        f"{row['name']}: {key} is {held['found']:.3g}, limit {held['limit']:g}"
        for key, held in row["outcome"].items()
        if not held["found"] <= held["limit"]
    ]


def lines(row: Mapping[str, Any]) -> list[str]:
    """A row of the table, and what was found to agree below it."""
    ours, theirs = row["seconds"]["gencli"], row["seconds"]["peer"]
    low, high = row["spread"]
    held = row.get("peak_mb")
    memory = f"{held['gencli']:7.0f} {held['peer']:7.0f}" if held else f"{'':15}"
    name = f"{row['name']:46} {row['peer']:22}"
    made = [f"{name} {ours:9.3f} {theirs:9.3f} {row['ratio']:7.2f} {low:7.2f}–{high:<7.2f} {memory}"]
    return made + [f"    {key}: {h['found']:.2g} (limit {h['limit']:g})" for key, h in row["outcome"].items()]


HEAD = f"{'':46} {'against':22} {'gencli s':>9} {'peer s':>9} {'ratio':>7} {'spread':>15} {'MB':>7} {'peer MB':>7}"
