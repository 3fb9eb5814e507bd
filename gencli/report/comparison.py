"""A comparison as one HTML page: of samplers on one run, or of families of models on one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli import files
from gencli.errors import GencliError
from gencli.report import figures, numbers
from gencli.report.album import ROOM, Album
from gencli.report.frame import Page, Section
from gencli.report.markup import Markup, element, framed, joined, noted, table
from gencli.report.page import configuration
from gencli.report.pareto import Point

if TYPE_CHECKING:
    from gencli.evaluation.book import Row
    from gencli.evaluation.compare import Cell

FILE = "compare.json"
_SECONDS = "milliseconds a sample"


def of_comparison(folder: Path, room: int = ROOM) -> Page:
    """The page of the comparison in a folder.

    Args:
        folder: with compare.json.
        room: characters for pictures.

    Raises:
        GencliError: compare.json is damaged, or of another kind.
    """
    path = folder / FILE
    try:
        document = files.read_json(path)
        families = document.get("compares") == "families"
        held = document.pop("rows" if families else "cells")
    except (ValueError, KeyError, AttributeError) as error:
        raise GencliError(f"{path} is damaged: {error!r}", "restore it from a copy, or compare again") from None
    page = _of_families if families else _of_samplers
    try:
        return page(folder, document, held, Album(room))
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise GencliError(f"{path} is damaged: {error!r}", "restore it from a copy, or compare again") from None


def _page(
    folder: Path,
    album: Album,
    kind: str,
    title: str,
    summary: str,
    shown: Sequence[tuple[str, Any]],
    parts: Sequence[Section | None],
    following: str,
) -> Page:
    sections = [part for part in parts if part is not None]
    return Page(kind, title, joined(summary), str(folder), shown, sections, album.notes(), album.count, following)


def _receipts(named: Sequence[tuple[str, Mapping[str, Any]]]) -> Section | None:
    """Every number with its receipt, under the name of what was measured."""
    rows = [{**value, "metric": f"{name}: {value['metric']}"} for name, value in named]
    known = [{**row, "receipt": row.get("receipt") or {}, "facts": row.get("facts") or {}} for row in rows]
    body = numbers.evaluations(known) if known else None
    return Section("evaluations", "Evaluations", body, folds=True) if body else None


def _head(names: Sequence[str], right: Sequence[int]) -> Markup:
    return element(
        "tr",
        [element("th", name, scope="col", class_="number" if i in right else None) for i, name in enumerate(names)],
    )


def _measured(value: Mapping[str, Any] | None) -> Markup | None:
    if value is None:
        return None
    kind = "of the codes" if "codes" in value["metric"] else value.get("kind", "")
    below = " · ".join(words for words in (numbers.interval(value), kind) if words)
    return joined(numbers.number(value), element("div", below, class_="note") if below else None)


# ---------------------------------------------------------------------------------------------------------------- samplers


def _of_samplers(folder: Path, document: dict[str, Any], held: list[dict[str, Any]], album: Album) -> Page:
    from gencli.evaluation.compare import Cell

    cells = [Cell(**{**cell, "values": tuple(cell["values"])}) for cell in held]
    run, data, n = (document.get(key, "") for key in ("run", "data", "n"))
    done = [cell for cell in cells if cell.values]
    summary = f"Samplers on the run {run}, from the same seeds, measured against {data}."
    shown = [
        ("run", run),
        ("data", data),
        ("samples a cell", n),
        ("cells", len(done)),
        ("device", document.get("device")),
    ]
    named = [(cell.label, value) for cell in done for value in cell.values]
    parts = [
        Section("table", "Results", _cells(cells)),
        _costs(done),
        _pictures(folder, done, album),
        _receipts(named),
        Section("configuration", "What all cells share", configuration(_plain(document), ())),
    ]
    return _page(
        folder, album, "gencli comparison", f"Samplers on {run}", summary, shown, parts, f"gencli report {run}"
    )


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """Lists of settings as settings by name."""
    metrics = {metric.get("name", "metric"): metric for metric in document.get("metrics", [])}
    return {**document, "metrics": metrics}


def _cells(cells: Sequence[Cell]) -> Markup:
    names = list(dict.fromkeys(value["metric"] for cell in cells for value in cell.values))
    rows = []
    for cell in cells:
        values = {value["metric"]: value for value in cell.values}
        cost = [f"{cell.evaluations:g}", f"{cell.seconds:.3g}"] if values else ["", ""]
        why = f"{cell.reason}: {cell.why}" if cell.reason else ""
        steps = "" if cell.steps is None else cell.steps
        rows.append(([cell.sampler, steps, *(_measured(values.get(name)) for name in names), *cost], _small(why)))
    header = ["sampler", "steps", *names, "evaluations", "seconds"]
    notes = dict.fromkeys(value["note"] for cell in cells for value in cell.values if value.get("note"))
    return joined(
        noted(header, rows, "results", range(1, 4 + len(names))),
        [element("p", note, class_="note") for note in notes],
    )


def _costs(done: Sequence[Cell]) -> Section | None:
    if not done:
        return None
    first = done[0].values[0]
    points = []
    for cell in done:
        costs = {"network evaluations a sample": cell.evaluations, "seconds for all samples": cell.seconds}
        points.append(_point(cell.label, cell.values[0], {name: cost for name, cost in costs.items() if cost > 0}))
    lower = first.get("better") != "higher"
    drawn = [figures.scatter(points, cost, first["metric"], lower) for cost in points[0].costs]
    return Section("costs", "Quality against cost", element("div", drawn, class_="pair"))


def _point(name: str, value: Mapping[str, Any], costs: Mapping[str, float]) -> Point:
    ends = value.get("interval")
    return Point(name, float(value["value"]), (float(ends[0]), float(ends[1])) if ends else None, costs)


def _pictures(folder: Path, done: Sequence[Cell], album: Album) -> Section | None:
    """A row a sampler, a column a number of steps."""
    columns: list[int | None] = [*sorted({cell.steps for cell in done if cell.steps is not None})] or [None]
    rows = []
    for sampler in dict.fromkeys(cell.sampler for cell in done):
        own = {columns[0] if c.steps is None else c.steps: c for c in done if c.sampler == sampler}
        shown = [_shown(folder, own[column], album) if column in own else None for column in columns]
        rows.append(element("tr", element("th", sampler, scope="row"), [element("td", one) for one in shown]))
    if not rows:
        return None
    head = _head(["sampler", *("samples" if column is None else f"{column} steps" for column in columns)], ())
    body = element("div", framed(head, rows, "pictures of all cells"), class_="cells")
    return Section("pictures", "Samples", body)


def _shown(folder: Path, cell: Cell, album: Album) -> Markup | None:
    path = folder / f"{cell.label}.png"
    picture = album.file(path, f"samples by {cell.label}") if path.is_file() else None
    if picture is None:
        return None
    value = cell.values[0]
    words = f"{value['metric'].split('[')[0]} {value['value']:.3g} · {cell.evaluations:g} evaluations"
    return element("figure", picture, element("figcaption", words))


# ---------------------------------------------------------------------------------------------------------------- families


def _of_families(folder: Path, document: dict[str, Any], held: list[dict[str, Any]], album: Album) -> Page:
    from gencli.evaluation.book import Row

    rows = [Row(**{**row, "values": tuple(row["values"]), "notes": tuple(row["notes"])}) for row in held]
    models = sorted((row for row in rows if row.kind == "model"), key=_rank)
    rest = [row for row in rows if row.kind != "model"]
    data, n, budget = (document.get(key) for key in ("data", "n", "budget"))
    each = f", each trained within {f'{budget:g} s' if isinstance(budget, float) else budget}" if budget else ""
    summary = f"{len(models)} models on {data}{each}, measured alike against its {document.get('split')} split."
    shown = [("data", data), ("samples each", n), ("models", len(models)), ("features", document.get("features"))]
    budgets = document.pop("budgets", None) or {}
    parts = [
        Section("table", "Results", _ranking(models, rest)),
        _fronts(models, rest),
        _gallery(folder, [*models, *rest], album),
        _receipts([(row.name, value) for row in [*models, *rest] for value in row.values]),
        Section("configuration", "What all rows share", joined(configuration(_plain(document), ()), _bought(budgets))),
    ]
    best = next((row for row in models if row.values), None)
    following = f"gencli report {best.run}" if best and best.run else f"gencli compare --out {folder}"
    return _page(folder, album, "gencli comparison", f"Families of models on {data}", summary, shown, parts, following)


def _small(words: str) -> Markup | None:
    return element("p", words, class_="note") if words else None


def _rank(row: Row) -> tuple[bool, float]:
    quality = row.quality if row.quality is not None else 0.0
    lower = not row.values or row.values[0].get("better") != "higher"
    return not row.values, quality if lower else -quality


def _ranking(models: Sequence[Row], rest: Sequence[Row]) -> Markup:
    from gencli.evaluation.book import remarks

    rows = [*models, *rest]
    names = list(dict.fromkeys(v["metric"].split("[")[0] for row in rows for v in row.values))
    made = []
    for row in rows:
        cells = [
            row.name,
            *(_measured(row.of(name)) for name in names),
            "" if row.parameters is None else f"{row.parameters:,}",
            "" if row.train_seconds is None else f"{row.train_seconds:,.0f} s",
            "" if row.train_steps is None else f"{row.train_steps:,}",
            "" if row.sample_seconds is None else f"{1000 * row.sample_seconds:.3g}",
            "" if row.evaluations is None else f"{row.evaluations:g}",
        ]
        made.append((cells, _small("; ".join(remarks(row, rest)))))
    header = ["model", *names, "parameters", "training", "steps", "ms a sample", "evaluations"]
    notes = dict.fromkeys(value["note"] for row in models for value in row.values if value.get("note"))
    return joined(
        noted(header, made, "results, the best first", range(1, len(names) + 6)),
        [element("p", note, class_="note") for note in notes],
    )


def _fronts(models: Sequence[Row], rest: Sequence[Row]) -> Section | None:
    done = [row for row in models if row.values]
    if not done:
        return None
    points = []
    for row in done:
        sampling = None if row.sample_seconds is None else 1000 * row.sample_seconds
        costs = {_SECONDS: sampling, "seconds of training": row.train_seconds}
        points.append(_point(row.name, row.values[0], {name: cost for name, cost in costs.items() if cost is not None}))
    levels = {row.name: row.quality for row in rest if row.quality is not None}
    first = done[0].values[0]
    lower = first.get("better") != "higher"
    known = list(dict.fromkeys(name for point in points for name in point.costs))
    drawn = [figures.scatter(points, cost, first["metric"], lower, levels) for cost in known]
    words = element("p", "✓ marks what no other model beats in both quality and cost.", class_="note")
    return Section("costs", "Quality against cost", joined(element("div", drawn, class_="pair"), words))


def _gallery(folder: Path, rows: Sequence[Row], album: Album) -> Section | None:
    made = []
    for row in rows:
        path = folder / f"{row.slug}.png"
        picture = album.file(path, f"samples of {row.name}") if path.is_file() else None
        if picture is not None:
            by = f" by {row.sampler}" if row.sampler else ""
            made.append(element("figure", picture, element("figcaption", element("strong", row.name), by)))
    return Section("pictures", "Samples", element("div", made, class_="gallery")) if made else None


def _bought(budgets: Mapping[str, Sequence[Mapping[str, Any]]]) -> Markup | None:
    """The steps that the budget bought, stage by stage."""
    if not budgets:
        return None
    rows = [
        [
            name if len(stages) == 1 else f"{name}, stage {i + 1}",
            f"{stage['steps']:,}",
            f"{1000 * stage['step_seconds']:.3g}",
        ]
        for name, stages in budgets.items()
        for i, stage in enumerate(stages)
    ]
    head = element("h3", "Steps that the budget bought")
    return joined(head, table(["model", "steps", "milliseconds a step"], rows, "steps bought", (1, 2)))
