"""Measured numbers on a page: a row each, under it what must be known to read it, and its receipt to be opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gencli.evaluation.receipts import explained
from gencli.report.markup import Markup, element, facts, folded, joined, noted, table

HEADER = ("metric", "value", "95 % interval", "n", "kind")


def evaluations(rows: Sequence[Mapping[str, Any]], weights: str = "") -> Markup:
    """The table of all numbers.

    Args:
        rows: as in evaluations.jsonl.
        weights: of the run today, numbers of others are marked; empty where there is none.
    """
    dated = any(row.get("at") for row in rows)
    made = []
    for row in rows:
        cells = [row["metric"], number(row), interval(row), f"{row.get('n', 0):,}", direction(row)]
        made.append((cells + ([str(row.get("at", ""))[:10]] if dated else []), _more(row, weights)))
    return noted([*HEADER, *(["measured"] if dated else [])], made, "evaluations", (1, 2, 3))


def _more(row: Mapping[str, Any], weights: str) -> Markup:
    """What must be known to read a number, and its receipt."""
    other = weights and row.get("receipt", {}).get("weights", weights) != weights
    stale = "Of other weights than the run has now." if other else None
    notes = [element("p", note, class_="note") for note in (row.get("note") or None, stale) if note]
    return joined(notes, receipt(row))


def number(row: Mapping[str, Any]) -> Markup:
    """The value as it is read, with all its digits inside."""
    unit = f" {row['unit']}" if row.get("unit") else ""
    return element("data", f"{row['value']:.4g}{unit}", value=repr(row["value"]))


def interval(row: Mapping[str, Any]) -> str:
    """Its ends; empty where it is not known."""
    ends = row.get("interval")
    return f"{ends[0]:.4g} – {ends[1]:.4g}" if ends else ""


def direction(row: Mapping[str, Any]) -> str:
    """The kind of a likelihood, or which way is better."""
    return str(row.get("kind") or f"{row.get('better', '')} is better")


def receipt(row: Mapping[str, Any]) -> Markup:
    """Everything that made the number, folded."""
    exact = [("value", repr(row["value"])), *explained(row.get("receipt", {}))]
    known = [(name.replace("_", " "), value) for name, value in row.get("facts", {}).items() if not _pairs(value)]
    after = [("measured by", f"gencli {row['gencli']}")] if "gencli" in row else []
    after += [("at", row["at"])] if "at" in row else []
    return folded(f"receipt of {row['metric']}", facts([*exact, *known, *after], f"receipt of {row['metric']}"))


def _pairs(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def neighbours(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, Markup]]:
    """What numbers name of single samples and their nearest training items: a table each."""
    made = []
    for row in rows:
        for key, value in row.get("facts", {}).items():
            if _pairs(value):
                header = list(dict.fromkeys(name for one in value for name in one))
                cells = [[_short(one.get(name, "")) for name in header] for one in value]
                label = f"{key} of {row['metric']}"
                made.append((label, table(header, cells, label, range(1, len(header)))))
    return made


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
