"""The only place that prints: data to stdout, everything else to stderr, one JSON document when asked."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from gencli.errors import GencliError

SCHEMA = 1
PLAIN_EVERY = 30.0
ESTIMATE_OVER = 10.0
LONGEST = 2000  # characters of an error's line; a name in a hostile file may have millions


@dataclass
class State:
    """What was asked of the output, for the whole command."""

    quiet: bool = False
    json: bool = False
    debug: bool = False
    inner: bool = False  # a command run by another: what to do next is not its business
    args: list[str] = field(default_factory=list)
    document: dict[str, Any] = field(default_factory=dict)


state = State()


def is_terminal() -> bool:
    """Whether a person watches stderr."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _rich(to_stdout: bool = False) -> Any:
    from rich.console import Console

    return Console(stderr=not to_stdout, highlight=False, soft_wrap=True)


def _write(stream: Any, text: str) -> None:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()


def say(text: str) -> None:
    """A line for the person watching; silent with --quiet."""
    if not state.quiet and not state.json:
        _write(sys.stderr, plain(text))


def plain(text: str, kept: str = "\n\t") -> str:
    """A text whose control characters (of a file's name, say) are written out, so that no terminal obeys them."""
    return "".join(c if c.isprintable() or c in kept else repr(c)[1:-1] for c in text)


def out(text: str) -> None:
    """A line of data."""
    if not state.json:
        _write(sys.stdout, text)


def show(text: str) -> None:
    """A line of data that --quiet leaves out."""
    if not state.quiet:
        out(text)


def result(path: Any) -> None:
    """The path that the command made: the one line that --quiet leaves."""
    state.document["path"] = str(path)
    if not state.inner:
        out(str(path))


def following(command: str) -> None:
    """The command most likely wanted next."""
    if not state.inner:
        state.document["next"] = command
        say(f"next: {command}")


def document(**values: Any) -> None:
    """Add to the JSON document that --json prints."""
    state.document.update(values)


def flush_json() -> None:
    """Print the JSON document, once, at the end of the command."""
    if state.json:
        _write(sys.stdout, json.dumps({"schema": SCHEMA, **state.document}, ensure_ascii=False, default=str))


def fail(error: GencliError) -> None:
    """One line, then the hint."""
    if state.json:
        state.document = {"error": error.message, "hint": error.hint}
        flush_json()
        return
    message = error.message if len(error.message) <= LONGEST else f"{error.message[:LONGEST]} …"
    _write(sys.stderr, plain(f"error: {message}", kept=""))
    if error.hint:
        _write(sys.stderr, plain(f"hint: {error.hint}", kept=""))


def agreed(question: str, yes: bool) -> bool:
    """Whether the person agrees; where no terminal can be asked on, only `--yes` says so."""
    if yes:
        return True
    if state.json or not (sys.stdin.isatty() and is_terminal()):
        raise GencliError(f"there is no terminal to ask on: {question}", "add --yes")
    sys.stderr.write(f"{question}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def table(rows: Sequence[Sequence[Any]], header: Sequence[str]) -> None:
    """A table for a terminal, untruncated tab-separated values for a pipe."""
    if state.json or state.quiet:
        return
    if not sys.stdout.isatty():
        for row in [header, *rows]:
            _write(sys.stdout, "\t".join(str(cell) for cell in row))
        return
    from rich import box
    from rich.table import Table

    drawn = Table(
        *header, box=box.SIMPLE_HEAD if sys.stdout.encoding.lower().startswith("utf") else box.ASCII, pad_edge=False
    )
    for row in rows:
        drawn.add_row(*[str(cell) for cell in row])
    _rich(to_stdout=True).print(drawn)


class Task:
    """A long piece of work: `advance` it and it shows rate and time to go."""

    def __init__(self, what: str, total: int, unit: str, done: int) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._first, self._began, self._said = done, time.perf_counter(), time.perf_counter()
        self._bar: Any = None
        self._estimated = False
        self._warm: tuple[float, int] | None = None

    def estimate(self) -> None:
        """Say once how long it will take, if that is long, when a few units after the first (the slowest) have shown it."""
        now = time.perf_counter()
        if self._warm is None:
            self._warm = (now, self.done)
        seconds, units = now - self._warm[0], self.done - self._warm[1]
        if self._estimated or seconds < 2 or units < 2:
            return
        self._estimated = True
        left = (self.total - self.done) * seconds / units
        if left > ESTIMATE_OVER:
            say(f"{self.what}: about {clock(left)} to go")

    def advance(self, done: int, note: str = "") -> None:
        """`done` of `total` are finished."""
        self.done = done
        self.estimate()
        if self._bar is not None:
            bar, handle = self._bar
            bar.update(handle, completed=done, note=note, rate=f"{self.rate():.3g} {self.unit}/s")
        elif time.perf_counter() - self._said >= PLAIN_EVERY:
            self._said = time.perf_counter()
            say(self.line(note))

    def rate(self) -> float:
        """Units a second since the task began."""
        return (self.done - self._first) / max(1e-9, time.perf_counter() - self._began)

    def line(self, note: str = "") -> str:
        """The task in one plain line."""
        rate = self.rate()
        left = (self.total - self.done) / rate if rate else float("nan")
        tail = f" · {note}" if note else ""
        return f"{self.what} {self.done}/{self.total} · {rate:.3g} {self.unit}/s · {clock(left)} left{tail}"


def clock(seconds: float) -> str:
    """`95` -> `1:35`."""
    if seconds != seconds or seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def task(what: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
    """Show a long piece of work while the block runs."""
    made = Task(what, total, unit, done)
    if state.quiet or state.json or not is_terminal():
        yield made
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}")]
    bar = Progress(*columns, TimeRemainingColumn(), TextColumn("{task.fields[note]}"), console=_rich(), transient=True)
    with bar:
        handle = bar.add_task(what, total=total, completed=done, note="", rate="")
        made._bar = (bar, handle)
        yield made


@contextmanager
def hook() -> Iterator[Any]:
    """`hook(what, done, total)` for work below the command line: a bar or plain line for each `what`."""
    with ExitStack() as stack:
        shown: dict[str, Task] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in shown:
                stack.close()
                shown[what] = stack.enter_context(task(what, total, "", done))
            shown[what].advance(done)

        yield progress


def picture(rows: Iterable[Sequence[tuple[tuple[int, int, int], tuple[int, int, int]]]]) -> None:
    """Half-block characters: each is two pixels, (upper, lower)."""
    for row in rows:
        cells = "".join(f"\x1b[38;2;{a};{b};{c}m\x1b[48;2;{d};{e};{f}m▀" for (a, b, c), (d, e, f) in row)
        _write(sys.stdout, cells + "\x1b[0m")
