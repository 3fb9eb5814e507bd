"""All benchmarks, one after the other: a table, and one JSON file.

    python -m benchmarks [NAME …] [--json docs/bench.json] [--mini]

Every benchmark, and every side whose memory is measured, has a process of its own; this one loads nothing, because a
process inherits its parent's peak.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import _frame

NAMES = (
    "startup",
    "unet",
    "dit",
    "frechet",
    "extraction",
    "token_sampling",
    "gpt",
    "flow_speed",
    "gan_speed",
    "vae",
    "precision",
)


def cases(name: str, folder: Path, mini: bool) -> list[_frame.Case]:
    """What benchmark `name` compares; `folder` is scratch, shared by its processes."""
    made: list[_frame.Case] = importlib.import_module(f"benchmarks.{name}").cases(folder, mini)
    return made


def child(name: str, folder: Path, mini: bool, peak: tuple[str, str] | None = None) -> Any:
    """What a process that runs one benchmark, or one side of one case, reports."""
    command = [sys.executable, "-m", "benchmarks", name, "--folder", str(folder), *(["--mini"] if mini else [])]
    if peak:
        command += ["--peak", *peak]
    subprocess.run(command, check=True)
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def work(name: str, folder: Path, mini: bool, peak: tuple[str, str] | None) -> None:
    """What `child` starts."""
    found = cases(name, folder, mini)
    report: Any
    if peak:
        report = _frame.peak(next(case for case in found if case.name == peak[0]), peak[1])
    else:
        report = [{**_frame.measure(case), "memory": case.memory} for case in found]
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")


def run(name: str, mini: bool) -> list[dict[str, Any]]:
    """The rows of a benchmark."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = child(name, folder, mini)
        for row in rows:
            if row.pop("memory"):
                sides = ("gencli", "peer")
                row["peak_mb"] = {side: child(name, folder, mini, (row["name"], side)) / 1e6 for side in sides}
    return [{"benchmark": name, **row} for row in rows]


def main() -> int:
    """Run, print, write; 1 if something that must agree does not."""
    read = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n", 1)[0])
    read.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    read.add_argument("--json", type=Path, help="where to write the figures")
    read.add_argument("--mini", action="store_true", help="the same in miniature; its times mean nothing")
    read.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    read.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    given = read.parse_args()
    if unknown := set(given.names) - set(NAMES):
        read.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    if given.folder:
        work(given.names[0], given.folder, given.mini, tuple(given.peak) if given.peak else None)
        return 0
    facts, began, rows = _frame.machine(), time.monotonic(), []
    print(f"{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['features'])}\n{_frame.HEAD}", flush=True)
    for name in given.names or NAMES:
        made = run(name, given.mini)
        print("\n".join(line for row in made for line in _frame.lines(row)), flush=True)
        rows += made
    print(f"{time.monotonic() - began:.0f} s in all")
    if given.json:
        text = json.dumps({"machine": facts, "rows": rows}, indent=2, ensure_ascii=False)
        given.json.write_text(text + "\n", encoding="utf-8")
    missed = [line for row in rows for line in _frame.misses(row)]
    print("\n".join(missed), end="\n" if missed else "")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
