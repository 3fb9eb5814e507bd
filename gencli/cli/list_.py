"""`gencli list [KIND]`: what there is, read from first docstring lines, without importing torch."""

from __future__ import annotations

import dataclasses
from typing import Any

from gencli import recipe as recipes
from gencli import registry, runs
from gencli.cli import console
from gencli.cli.options import Flag, build

KINDS = ("models", "networks", "samplers", "guidance", "codecs", "data", "metrics", "converters", "recipes", "runs")


def command() -> Any:
    """The `list` command."""
    complete = lambda incomplete: [k for k in KINDS if k.startswith(incomplete)]  # noqa: E731
    kind = Flag("kind", (), str, f"one of {', '.join(KINDS)}", metavar="[KIND]", complete=complete)
    return build("list", "Show models, samplers, data sets, metrics, recipes and runs.", [kind], run)


def run(values: dict[str, Any]) -> None:
    """Print one kind, or all."""
    asked = values.get("kind")
    if asked is not None and asked not in KINDS:
        raise registry.unknown("kind", asked, KINDS, "gencli list --help")
    for kind in [asked] if asked else KINDS:
        rows, header = _rows(kind)
        console.document(**{kind: [dict(zip(header, row, strict=True)) for row in rows]})
        if not asked:
            console.show(f"{kind}:" if rows else f"{kind}: none yet")
        if rows:
            console.table(rows, header)
        elif asked == "runs":
            console.say(f"no runs in {runs.places()}")
    broken = [bad for bad in registry.broken() if asked in (None, bad.kind)]
    for bad in broken:
        console.say(f"warning: {bad}")
    if broken:
        console.document(broken=[dataclasses.asdict(bad) for bad in broken])
    console.following("gencli info NAME" if asked != "runs" else "gencli sample RUN")


def _rows(kind: str) -> tuple[list[list[Any]], list[str]]:
    if kind == "runs":
        return run_rows()
    if kind == "recipes":
        return [[name, recipes.summary(path)] for name, path in recipes.names().items()], ["recipe", "summary"]
    found = registry.entries(kind).values()
    if kind == "models":
        rows = [[e.name, e.family, e.title, e.authors, e.year, e.arxiv, ", ".join(e.offers)] for e in found]
        return rows, ["model", "family", "title", "authors", "year", "arxiv", "offers"]
    return [[e.name, e.title, e.authors, e.year, e.arxiv] for e in found], [kind, "title", "authors", "year", "arxiv"]


def run_rows() -> tuple[list[list[Any]], list[str]]:
    """Runs, newest first, and what the columns are."""
    rows = [
        [r.name, r.model, r.config.get("data", {}).get("name", "?"), r.config.get("step", 0), _when(r), r.path]
        for r in runs.every()
    ]
    return rows, ["run", "model", "data", "step", "created", "folder"]


def _when(run: runs.Found) -> str:
    return "shipped" if run.shipped else str(run.config.get("created", ""))[:19].replace("T", " ")
