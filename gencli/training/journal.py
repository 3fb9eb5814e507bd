"""metrics.jsonl: a line for each logged step, and none that no saved state stands behind."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gencli import files


def line(step: Any, values: Mapping[str, float], began: float) -> str:
    """Of a step whose training began at `began`, a reading of `perf_counter`."""
    return json.dumps({"step": step.step, **values, "seconds": round(time.perf_counter() - began, 3)})


def trim(path: Path, step: int) -> None:
    """Drop what was logged after the state that training continues from."""
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        kept = "".join(line + "\n" for line in text.splitlines() if _step_of(line) <= step)
        if kept != text:
            files.atomic_write(path, kept.encode())


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
