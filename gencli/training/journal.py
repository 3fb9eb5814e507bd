"""metrics.jsonl: a line for each logged step, and none that no saved state stands behind."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from gencli import crash, files


def line(step: Any, values: Mapping[str, float], began: float) -> str:
    """Of a step whose training began at `began`, a reading of `perf_counter`."""
    return json.dumps({"step": step.step, **values, "seconds": round(time.perf_counter() - began, 3)})


def append(path: Path, lines: Sequence[str]) -> None:
    """Add lines and see them on disk; a write that ends in the middle is mended by `trim`."""
    text = "".join(line + "\n" for line in lines)
    with files.appended(path) as handle:
        crash.point("metrics.half", lambda: _put(handle, text[: len(text) // 2]))
        _put(handle, text)
        os.fsync(handle.fileno())
        crash.point("metrics.written")


def _put(handle: TextIO, text: str) -> None:
    handle.write(text)
    handle.flush()


def trim(path: Path, step: int) -> None:
    """Drop what was logged after the state that training continues from."""
    if path.is_file():
        with files.understood(path, "take it away, then resume"):
            text = path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(line + "\n" for line in text.splitlines() if _step_of(line) <= step)
        if kept != text:
            files.atomic_write(path, kept.encode())


def _step_of(line: str) -> float:
    try:
        return float(files.parsed(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
