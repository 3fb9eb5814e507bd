"""Named places where a process may be made to die or to find the disk full, so that what survives it can be tested.

    GENCLI_FAULT=NAME[:N[:kill|full]]     when the process comes by for the N-th time (the first by default)

`kill` (the default) is SIGKILL: nothing is tidied up. `full` raises what a full disk raises. Unset, a place costs one
comparison.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

POINTS = {
    "file.half": "half of a file is under its temporary name",
    "file.written": "a file is under its temporary name, perhaps not on disk yet",
    "file.synced": "a file is on disk under its temporary name",
    "file.renamed": "a file has its name, perhaps not on disk yet",
    "file.kept": "a file has its name on disk",
    "metrics.half": "half of what was logged is in metrics.jsonl",
    "metrics.written": "metrics.jsonl is ahead of every saved state",
    "state.begun": "a saved state's folder is made under its temporary name",
    "state.written": "all files of a state are in that folder",
    "state.renamed": "the folder has its name, perhaps not on disk yet",
    "state.kept": "the folder has its name on disk; the run's weights are the old ones",
    "weights.linked": "the run's new weights are under a temporary name",
    "weights.renamed": "the run's weights are the new ones; older states are not removed yet",
    "state.removed": "an older state is removed",
    "step.begun": "an optimiser step begins",
    "grid.frame": "a frame of a picture or of samples is drawn",
}
WRITING = tuple(name for name in POINTS if not name.startswith(("step", "grid")))
"""The places inside a write; a full disk can be met at those alone."""


@dataclass
class _Fault:
    name: str
    left: int
    full: bool


def _parsed(text: str | None) -> _Fault | None:
    if not text:
        return None
    parts = text.split(":")
    name, count, way = [*parts, *("", "1", "kill")[len(parts) :]] if len(parts) < 4 else ("", "", "")
    places = WRITING if way == "full" else POINTS
    if name not in places or not count.isdigit() or int(count) < 1 or way not in ("kill", "full"):
        raise SystemExit(
            f"GENCLI_FAULT is '{text}', it must be NAME[:N[:kill|full]] with NAME one of {', '.join(places)}"
        )
    return _Fault(name, int(count), way == "full")


def arm(text: str | None) -> None:
    """What `GENCLI_FAULT` would say."""
    global _fault
    _fault = _parsed(text)


def point(name: str, before: Callable[[], object] | None = None) -> None:
    """Come by a place; `before` is done first where the process is about to fail."""
    if _fault is None or _fault.name != name:
        return
    _fault.left -= 1
    if _fault.left:
        return
    if before is not None:
        before()
    if _fault.full:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


_fault = _parsed(os.environ.get("GENCLI_FAULT"))
