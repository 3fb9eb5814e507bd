"""Commands on hostile input: each case in a fork, in a folder of its own, confined, judged and counted.

A case is a function of its kind and number. It is counted as `outer` if not even the file's framing is valid, `inside` if
the framing is valid and the command refused what is in it, `accepted` if the command did what it was told.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import guarded
from zygote import Process, Zygote

SECONDS, ROOM = 5, 2**30
LONGEST = 4000  # characters of the line that says what is wrong
SIDE_BY_SIDE = 2
ALSO = (
    "gencli.cli.convert",
    "gencli.cli.data",
    "gencli.cli.eval",
    "gencli.cli.info",
    "gencli.cli.list_",
    "gencli.cli.report",
    "gencli.cli.runs_",
    "gencli.data._report",
    "gencli.evaluation.evaluate",
    "gencli.evaluation.walks",
    "gencli.evaluation.inputs",
    "gencli.evaluation.sources",
    "gencli.evaluation.completion",
    "gencli.evaluation.restoring",
    "gencli.report.page",
    "gencli.report.drawn",
    "gencli.report.kinds.image",
    "gencli.training.plan",
    "gencli.training.replay",
    "gencli.metrics._features",
    "gencli.evaluation.guides",
    "gencli.evaluation.items",
    "gencli.evaluation.rejection",
    "gencli.metrics.class_accuracy",
    "gencli.report.card",
    "gencli.report.codebook",
    "gencli.training.cache",
    "gencli.training.lock",
    "gencli.training.precision",
    "guarded",
    "warmed",
)


@dataclass(frozen=True)
class Case:
    """One command line on hostile input.

    Args:
        args: after `gencli`, run in the case's folder.
        framed: whether the file's outer framing is valid.
        what: what was done to the input, for a failure's message.
        changes: whether the command may change what it was given (it continues a run, or was told to write over it).
    """

    args: tuple[str, ...]
    framed: bool
    what: str
    changes: bool = False


Maker = Callable[[Random, Path], Case]
"""Writes what a case needs into its folder."""


@dataclass
class Running:
    """A case whose command has been started."""

    name: str
    case: Case
    cwd: Path
    process: Process
    before: dict[str, tuple[int, ...]]


@dataclass
class Bench:
    """Runs cases, and keeps what was found."""

    zygote: Zygote
    root: Path
    makers: dict[str, Maker]
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sentinel = self.root / "beside"
        self.sentinel.mkdir(parents=True)
        for name in ("canary", "config.json", "model.safetensors", "1.png"):
            (self.sentinel / name).write_bytes(b"not yours")
        self.untouched = listing(self.sentinel)

    def run(self, numbered: Iterable[tuple[str, int]]) -> None:
        """Run cases, two at a time."""
        waiting: deque[Running] = deque()
        for kind, number in numbered:
            waiting.append(self._start(kind, number))
            if len(waiting) >= SIDE_BY_SIDE:
                self._finish(waiting.popleft())
        while waiting:
            self._finish(waiting.popleft())

    def _start(self, kind: str, number: int) -> Running:
        name = f"{kind}-{number}"
        cwd = self.root / name
        cwd.mkdir()
        case = self.makers[kind](Random(name), cwd)
        before = listing(cwd)
        patch = f"import guarded; guarded.confine({str(cwd)!r}, {SECONDS}, {ROOM})"
        return Running(name, case, cwd, self.zygote.start(cwd, *case.args, patch=patch), before)

    def _finish(self, one: Running) -> None:
        code = one.process.wait()
        wrong = [*self._judged(one, code)]
        if wrong:
            text = one.process.stdout[-500:] + one.process.stderr[-1500:]
            self.failures.append(f"{one.name}: {one.case.what}: {one.case.args}: {'; '.join(wrong)}\n{text}")
        depth = "accepted" if code == 0 else "inside" if one.case.framed else "outer"
        self.counts[one.name.rpartition("-")[0], "broken" if wrong else depth] += 1
        remove(one.cwd)

    def _judged(self, one: Running, code: int) -> Iterable[str]:
        """What is wrong with how a command ended."""
        out, err = one.process.stdout, one.process.stderr
        if code in guarded.CODES:
            yield guarded.CODES[code]
        elif code not in (0, 2):
            yield f"exit code {code}"
        if "Traceback" in out + err or "please report" in err:
            yield "a traceback"
        if code == 2 and out.startswith('{"schema"'):
            err += f"error: {json.loads(out)['error']}"
        lines = err.split("\n")
        said = [i for i, line in enumerate(lines) if line.startswith("error: ")]
        if len(said) != (code == 2):
            yield f"{len(said)} lines of error"
        elif said and any(not line.startswith("hint: ") for line in lines[said[0] + 1 :] if line):
            yield "an error of several lines"
        elif said and len(lines[said[0]]) > LONGEST:
            yield f"an error of {len(lines[said[0]])} characters"
        if "\x1b" in err or "\0" in err:
            yield "control characters"
        if listing(self.sentinel) != self.untouched:
            yield "the folder beside was changed"
        if (self.root / "canary").exists() or (one.cwd / "canary").exists():
            yield "code in the file was run"
        after = listing(one.cwd) if not one.case.changes else {}
        gone = [name for name, facts in one.before.items() if not one.case.changes and after.get(name) != facts]
        if gone:
            yield f"changed what it was given: {gone[0]}"

    def table(self) -> str:
        """The counts, a row a kind."""
        depths = ("outer", "inside", "accepted", "broken")
        rows = [["kind", *depths, "all"]]
        for kind in sorted({kind for kind, _ in self.counts}):
            found = [self.counts[kind, depth] for depth in depths]
            rows.append([kind, *map(str, found), str(sum(found))])
        rows.append(["all", *(str(sum(n for (_, d), n in self.counts.items() if d == depth)) for depth in depths), ""])
        rows[-1][-1] = str(self.counts.total())
        return "\n".join("".join(cell.rjust(13) for cell in row) for row in rows)


def listing(folder: Path) -> dict[str, tuple[int, ...]]:
    """Every file under a folder with its size, its time of change and its mode; links are not followed."""
    made = {}
    for place, _, names in os.walk(folder):
        for name in names:
            path = f"{place}/{name}"
            found = os.lstat(path)
            made[path] = (found.st_size, found.st_mtime_ns, found.st_mode)
    return made


def remove(folder: Path) -> None:
    """Delete a case's folder, with what may not be read in it."""
    for _, inner, _, here in os.fwalk(folder):  # by handles: a path may be longer than a path may be
        for name in inner:
            if not stat.S_ISLNK(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode):
                os.chmod(name, 0o700, dir_fd=here)
    shutil.rmtree(folder, ignore_errors=True)
