"""What a run's folder holds, read for a page: nothing is computed, and what is damaged is named instead of left away."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gencli import files
from gencli.bundle import read_config, weight_files

_NAMED = 5  # damaged lines of a file that are named one by one
_STEP = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Draw:
    """A folder that `gencli sample` made of the run.

    Args:
        folder: where.
        facts: its samples.json without the items.
        count: of items.
    """

    folder: Path
    facts: dict[str, Any]
    count: int

    def picture(self, *names: str) -> Path | None:
        """The first of these files that is there."""
        return next((self.folder / name for name in names if (self.folder / name).is_file()), None)


@dataclass
class Folder:
    """A run's files.

    Args:
        path: of the run.
        config: its config.json.
        metrics: lines of metrics.jsonl, each with a `step`.
        evaluations: measured numbers, newest first.
        progress: pictures that training drew, by step.
        draws: what `gencli sample` made of these weights, newest first.
        nearest: the picture of samples beside their training items.
        codec: the nested codec's config.json.
        card: the model card.
        weights: hash of the weights; empty where there are none.
        problems: what could not be read, a line each.
    """

    path: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    progress: list[tuple[int, Path]] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    nearest: Path | None = None
    codec: dict[str, Any] | None = None
    card: str = ""
    weights: str = ""
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The run's, which is the folder's."""
        return self.path.absolute().name


def read(path: Path, shipped: bool = False, samples: Path = Path("samples")) -> Folder:
    """The run in a folder.

    Args:
        path: of the run.
        shipped: it came with gencli, so that its evaluations are beside its samples.
        samples: where `gencli sample` puts what it draws, a folder a run.

    Raises:
        GencliError: it is no run.
    """
    made = Folder(path, read_config(path))
    made.weights = weights_hash(path)
    made.metrics = read_lines(path / "metrics.jsonl", made.problems, _logged)
    drawn = samples / made.name
    evaluated = drawn if shipped else path
    measured = read_lines(evaluated / "evaluations.jsonl", made.problems, _measured)
    made.evaluations = sorted(measured, key=lambda row: str(row.get("at", "")), reverse=True)
    found = [(_STEP.fullmatch(picture.stem), picture) for picture in (path / "samples").glob("step-*.png")]
    made.progress = sorted((int(step[1]), picture) for step, picture in found if step)
    made.draws = _draws(drawn, made)
    made.nearest = evaluated / "nearest.png" if (evaluated / "nearest.png").is_file() else None
    if (path / "codec" / "config.json").is_file():
        made.codec = read_config(path / "codec")
    card = path / "README.md"
    made.card = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return made


def weights_hash(path: Path) -> str:
    """The hash that receipts name, without loading the weights; empty where there are none."""
    files = weight_files(path)
    if not files[0].is_file():
        return ""
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            with file.open("rb") as handle:
                while block := handle.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def read_lines(path: Path, problems: list[str], wrong: Callable[[dict[str, Any]], str]) -> list[dict[str, Any]]:
    """The good lines of a .jsonl; the others are told to `problems` with their numbers.

    Args:
        path: of the file; nothing where there is none.
        problems: gets a line for each damaged one.
        wrong: what is wrong with a line, or nothing.
    """
    if not path.is_file():
        return []
    rows, damaged = [], []
    with files.understood(path, "take it away"):
        text = files.read_bytes(path).decode("utf-8", "replace")
    for number, line in enumerate(text.splitlines(), 1):
        try:
            row = files.parsed(line)
            reason = wrong(row) if isinstance(row, dict) else "it is no object"
        except ValueError as error:
            reason = (
                f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)[:80]
            )
        if reason:
            damaged.append(f"{path.name}: line {number} is damaged and left out: {reason}")
        else:
            rows.append(row)
    problems += damaged[:_NAMED]
    if len(damaged) > _NAMED:
        problems.append(f"{path.name}: {len(damaged) - _NAMED} more lines are damaged and left out")
    return rows


def number(value: Any) -> bool:
    """Whether it is one, finite or not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _logged(row: dict[str, Any]) -> str:
    return "" if number(row.get("step")) and math.isfinite(row["step"]) else "it has no step"


def _measured(row: dict[str, Any]) -> str:
    if not isinstance(row.get("metric"), str) or not number(row.get("value")):
        return "it has no metric with a value"
    interval = row.get("interval")
    pair = isinstance(interval, list) and len(interval) == 2 and all(map(number, interval))
    if interval is not None and not pair:
        return "its interval is no pair of numbers"
    alike = all(isinstance(row.get(key, {}), dict) for key in ("receipt", "facts"))
    return "" if alike and number(row.get("n", 0)) else "its receipt, facts or n are of another type"


def _draws(folder: Path, made: Folder) -> list[Draw]:
    """What was drawn with the run's weights; other weights of the same name are told."""
    found, others = [], 0
    for path in sorted(folder.glob("*/samples.json")):
        try:
            facts = files.read_json(path)
            items = len(facts.pop("items"))
            same = facts["weights"] == made.weights
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            made.problems.append(f"{path} is damaged and left out: {type(error).__name__}: {error}")
            continue
        if same:
            found.append((path.stat().st_mtime, Draw(path.parent, facts, items)))
        else:
            others += 1
    if others:
        word = "folder" if others == 1 else "folders"
        made.problems.append(f"{others} {word} in {folder} were drawn with other weights and are left out")
    return [draw for _, draw in sorted(found, key=lambda pair: pair[0], reverse=True)]
