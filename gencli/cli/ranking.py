"""A comparison of families on the screen and on paper: the table, best first, the plot of quality against cost, the sheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gencli.cli import console

if TYPE_CHECKING:
    from gencli.evaluation.book import Book, Row

COSTS = ("seconds a sample", "seconds of training")


def show(rows: Sequence[Row], book: Book, again: str) -> None:
    """Print the table, draw the plot and the sheet."""
    models = sorted((row for row in rows if row.kind == "model"), key=_rank)
    rest = [row for row in rows if row.kind != "model"]
    _draw(models, rest, book)
    console.table([_cells(row, rest) for row in [*models, *rest]], _header(rows))
    for note in dict.fromkeys(value["note"] for row in models for value in row.values if value["note"]):
        console.say(f"note: {note}")
    console.document(folder=str(book.folder), rows=[asdict(row) for row in [*models, *rest]], **book.facts)
    if console.state.quiet or console.state.json:
        console.result(book.folder)
    console.say(f"{book.folder}")
    best = next((row for row in models if row.values), None)
    console.following(f"gencli sample {best.run}" if best else again)


def _rank(row: Row) -> tuple[bool, float]:
    quality = row.quality if row.quality is not None else 0.0
    lower = not row.values or row.values[0]["better"] == "lower"
    return not row.values, quality if lower else -quality


def _metrics(rows: Sequence[Row]) -> list[str]:
    """Names of what is measured of samples, without what stands in their brackets."""
    found = [v["metric"].split("[")[0] for row in rows if row.kind == "control" for v in row.values]
    return list(dict.fromkeys(found))


def _header(rows: Sequence[Row]) -> list[str]:
    return [
        *("model", *_metrics(rows), "bits/dim", "parameters", "training", "steps"),
        *("ms a sample", "evaluations", "note"),
    ]


def _cells(row: Row, rest: Sequence[Row]) -> list[str]:
    values = [row.of(name) for name in _metrics(rest)]
    bits = next((v for v in row.values if v["metric"].split("[")[0] == "bpd"), None)
    from gencli.evaluation.book import remarks

    return [
        row.name,
        *("" if value is None else _number(value) for value in values),
        "" if bits is None else f"{_number(bits)} {'of the codes' if 'codes' in bits['metric'] else bits['kind']}",
        "" if row.parameters is None else f"{row.parameters:,}",
        "" if row.train_seconds is None else console.clock(row.train_seconds),
        "" if row.train_steps is None else f"{row.train_steps:,}",
        "" if row.sample_seconds is None else f"{1000 * row.sample_seconds:.3g}",
        "" if row.evaluations is None else f"{row.evaluations:g}",
        "; ".join(remarks(row, rest)),
    ]


def _number(value: Mapping[str, Any]) -> str:
    interval = value["interval"]
    return f"{value['value']:.4g}" + (f" ({interval[0]:.4g} – {interval[1]:.4g})" if interval else "")


def _draw(models: Sequence[Row], rest: Sequence[Row], book: Book) -> None:
    from gencli.report.kinds._pictures import matrix, save_picture
    from gencli.report.pareto import Point, save_pareto

    done = [row for row in models if row.values]
    if not done:
        return
    points = []
    for row in done:
        both = zip(COSTS, (row.sample_seconds, row.train_seconds), strict=True)
        known = {name: cost for name, cost in both if cost is not None}
        points.append(Point(row.name, row.quality or 0.0, row.values[0]["interval"], known))
    levels = {row.name: row.quality for row in rest if row.quality is not None}
    first = done[0].values[0]
    title = f"{book.facts['data']} · {book.facts['n']} samples each"
    lower = first["better"] == "lower"
    costs = [name for name in COSTS if any(name in point.costs for point in points)]
    save_pareto(book.folder / "pareto.png", points, costs, first["metric"], levels, lower, title)
    shown = [*done, *rest]
    captions = [f"{first['metric'].split('[')[0]} {row.quality:.4g}" for row in shown]
    cells = [[(book.picture(row), text) for row, text in zip(shown, captions, strict=True)]]
    save_picture(book.folder / "grid.png", matrix(cells, [""], [row.name for row in shown], title))
