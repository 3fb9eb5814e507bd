"""`gencli selftest`: whether samplers, flows, likelihoods, distances and networks compute rightly on this machine."""

from __future__ import annotations

from typing import Any

from gencli.cli import console
from gencli.cli.options import build
from gencli.errors import GencliError


def command() -> Any:
    """The `selftest` command."""
    return build(
        "selftest",
        "Check the arithmetic on this machine's device against known answers, in under two minutes.\n\n"
        "Order of samplers, inverses of flows, probabilities that sum to one, FID(x, x) = 0, drift of precision; exit "
        "code 1 if any fails.",
        [],
        run,
    )


def run(values: dict[str, Any]) -> None:
    """Do every check, a line each."""
    from gencli import device
    from gencli.evaluation.selftest import checks

    todo = checks(device.default())
    done = []
    with console.task("selftest", len(todo), "checks") as task:
        for number, (name, check) in enumerate(todo):
            task.advance(number, name)
            done.append(check())
    rows = [
        (
            "ok" if one.passed else "FAILED",
            one.name,
            f"{one.figure:.3g}",
            f"{'at least' if one.least else 'at most'} {one.bar:g}",
            one.where,
        )
        for one in done
    ]
    console.table(rows, ["", "check", "figure", "bar", "where"])
    console.document(
        checks=[
            {
                **{"name": one.name, "figure": one.figure, "bar": one.bar, "where": one.where},
                **{"least": one.least, "passed": one.passed},
            }
            for one in done
        ]
    )
    if failed := [one for one in done if not one.passed]:
        raise GencliError(
            f"{len(failed)} of {len(done)} checks fail, first {failed[0].name}: {failed[0].figure:.3g}, the bar is "
            f"{failed[0].bar:g}",
            "say so in an issue, with what `gencli env` prints",
            code=1,
        )
    console.say(f"all {len(done)} checks pass")
    console.following("gencli demo")
