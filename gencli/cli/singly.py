"""Metrics of single items on a run: what is said while they are measured, and the picture of the worst samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gencli.cli import console


def measure(metrics: Sequence[Any], found: Any, loaded: Any, data: Any, by: Any, plan: Any) -> list[Any]:
    """The results of metrics of items; the worst samples beside their training items are drawn beside the receipts."""
    from gencli.evaluation import evaluate, items
    from gencli.evaluation.generate import cost

    evaluate.check_kinds(metrics, data)
    counts = " and ".join(f"{len(data.split(name)):,} {name} items" for name in ("train", "test"))
    if items.draws(metrics):
        todo = evaluate.outstanding(loaded, items.Raw(), evaluate.request_of(loaded, plan))
        steps, calls = cost(loaded, todo) if todo is not None else (0, 0)
        console.say(f"checkpoint {found.name} · {plan.n} samples · {calls} network evaluations · beside {counts}")
        with console.task("sampling", steps, "steps") as task:
            results, given = items.measure(metrics, loaded, data, by, plan, task.advance)
    else:
        console.say(f"checkpoint {found.name} · {counts}")
        results, given = items.measure(metrics, loaded, data, by, plan)
    picture = items.pictured(results, given)
    if picture is not None:
        from gencli.report.kinds.image import save_picture

        folder = Path("samples") / loaded.name if found.shipped else loaded.path
        path = save_picture(folder / "nearest.png", picture)
        console.say(f"the nearest samples, each beside its training item: {path}")
    return results
