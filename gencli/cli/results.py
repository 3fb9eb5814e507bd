"""Measured numbers on the screen: the table, what two of them say of each other, and their receipts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from gencli.cli import console
from gencli.errors import GencliError


@dataclass
class Measured:
    """All numbers of one run or of one set of files.

    Args:
        name: the run's, or the path.
        results: values with their receipts.
        floor: the same metrics between two halves of the reference, where asked for.
        config: of the run; None for files.
    """

    name: str
    results: list[Any]
    floor: list[Any] = field(default_factory=list)
    config: dict[str, Any] | None = None


def show(sets: Sequence[Measured], explain: bool, anyway: bool) -> None:
    """Print everything.

    Raises:
        GencliError: values that must not be compared, before anything is printed.
    """
    _check_alike(sets, anyway)
    results = [result for made in sets for result in made.results]
    floor = _distinct([result for made in sets for result in made.floor])
    console.document(results=[result.row() for result in [*results, *floor]])
    _table(sets, floor)
    if console.state.quiet:
        for result in [*results, *floor]:
            console.out(f"{result.value.name}\t{result.value.value:.6g}")
    if explain:
        _explain(results)
    _compare(sets)
    console.following("gencli info " + (results[0].receipt.get("run", "") or "fid"))


def _distinct(floor: Sequence[Any]) -> list[Any]:
    """Runs on one reference share a floor."""
    return list({(r.value.name, r.value.value, r.receipt["data_hash"]): r for r in floor}.values())


def _table(sets: Sequence[Measured], floor: Sequence[Any]) -> None:
    several = len(sets) > 1
    rows = [[*([made.name] if several else []), *_cells(result.value)] for made in sets for result in made.results] + [
        [*(["real data"] if several else []), *_cells(result.value)] for result in floor
    ]
    header = ["metric", "value", "95 % interval", "n", "kind", "note"]
    console.table(rows, [*(["of"] if several else []), *header])


def _cells(v: Any) -> list[Any]:
    interval = f"{v.interval[0]:.4g} – {v.interval[1]:.4g}" if v.interval else ""
    number = f"{v.value:.4g}{' ' + v.unit if v.unit else ''}"
    return [v.name, number, interval, v.n, v.kind or v.better + " is better", v.note]


def _explain(results: Sequence[Any]) -> None:
    """A receipt a metric; what a run's metrics share stands in each, as it is stored."""
    from gencli.evaluation.receipts import explained

    receipts = [{"metric": result.value.name, "rows": explained(result.receipt)} for result in results]
    console.document(receipts=receipts)
    for result, made in zip(results, receipts, strict=True):
        console.show("")
        console.table([[what, value] for what, value in made["rows"]], [f"receipt of {result.value.name}", ""])


def _compare(sets: Sequence[Measured]) -> None:
    """The first set against every other, and the spread over training seeds where that is all that differs."""
    if len(sets) < 2:
        return
    _over_seeds(sets)
    from gencli.evaluation.receipts import probability_better

    rows: list[list[str]] = []
    facts: list[dict[str, Any]] = []
    first = sets[0]
    for other in sets[1:]:
        for a, b in _pairs(first, other):
            p = probability_better(a.value, b.value)
            facts.append({"metric": a.value.name, "a": first.name, "b": other.name, "probability_a_better": p})
            rows.append([a.value.name, first.name, other.name, "" if p is None else f"{p:.3g}"])
    console.document(comparison=facts)
    console.show("")
    console.table(rows, ["metric", "A", "B", "probability that A is better"])
    console.say("note: normal approximation from the standard errors, taken as independent; the sampling noise only")


def _check_alike(sets: Sequence[Measured], anyway: bool) -> None:
    """Say, or without --anyway refuse, what makes values incomparable."""
    from gencli.evaluation.receipts import differences

    for one, other in pairwise(sets):
        for a, b in _pairs(one, other):
            found = differences(a, b)
            if found and not anyway:
                raise GencliError(
                    f"{a.value.name} of {one.name} and {other.name} must not be compared: {'; '.join(found)}",
                    "measure both alike, or add --anyway",
                )
            for line in found:
                console.say(f"note: {one.name} and {other.name} were measured differently: {line}")


def _pairs(one: Measured, other: Measured) -> list[tuple[Any, Any]]:
    """What two sets have of the same metric, whatever stands in its brackets."""
    theirs = {result.value.name.split("[")[0]: result for result in other.results}
    named = [(result, theirs.get(result.value.name.split("[")[0])) for result in one.results]
    return [(a, b) for a, b in named if b is not None]


def _over_seeds(sets: Sequence[Measured]) -> None:
    from gencli.evaluation.receipts import only_seeds_differ, over_seeds

    configs = [made.config for made in sets if made.config is not None]
    if len(configs) < len(sets) or not only_seeds_differ(configs):
        return
    spreads = [over_seeds([r.value for r in group]) for group in zip(*(made.results for made in sets), strict=True)]
    console.document(training_seeds=[{"metric": s.metric, "mean": s.mean, "sd": s.sd, "runs": s.runs} for s in spreads])
    for s in spreads:
        console.show(f"{s.metric} over {s.runs} training seeds: {s.mean:.4g} ± {s.sd:.2g} (mean ± sd)")
