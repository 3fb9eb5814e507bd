"""`gencli runs`, `gencli runs rm RUN…`, `gencli runs slim RUN…`: what runs take on the disk, and freeing it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
import typer.main

from gencli import files, runs
from gencli.cli import console, list_
from gencli.cli.options import Flag, build
from gencli.errors import GencliError


def command() -> Any:
    """The `runs` group; without a subcommand it lists."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", invoke_without_command=True)

    @app.callback(epilog="`gencli runs` alone lists them, newest first, with their sizes")
    def _runs(ctx: typer.Context) -> None:
        """Show runs with their sizes, remove them, or make them smaller."""
        if ctx.invoked_subcommand is None:
            show()

    group = typer.main.get_command(app)
    group.name = "runs"
    for name, help, run in (("rm", "Remove runs.", _rm), ("slim", "Remove what only training needs.", _slim)):
        group.add_command(build(name, help, _FLAGS, run))  # type: ignore[attr-defined]
    return group


def _names(incomplete: str) -> list[str]:
    return [run.name for run in runs.every() if not run.shipped and run.name.startswith(incomplete)]


_FLAGS = [
    Flag("runs", (), list[str], "runs by name or folder", metavar="RUN", complete=_names),
    Flag("yes", ("--yes", "-y"), bool, "do not ask", default=False),
]


def show() -> None:
    """List runs as `gencli list runs` does, with sizes."""
    rows, header = list_.run_rows()
    found = runs.every()
    spaces = [(files.space(run.path).size, files.space(run.path / "train").freed) for run in found]
    facts = [dict(zip(header, row, strict=True)) for row in rows]
    console.document(
        runs=[{**fact, "size": size, "slim_frees": less} for fact, (size, less) in zip(facts, spaces, strict=True)]
    )
    sizes = [[files.as_size(size), files.as_size(less)] for size, less in spaces]
    shown = [[*row[:-1], *size, row[-1]] for row, size in zip(rows, sizes, strict=True)]
    if rows:
        console.table(shown, [*header[:-1], "size", "slim frees", header[-1]])
    else:
        console.say(f"no runs in {runs.places()}")
    largest = max(
        [(less, run.name) for run, (_, less) in zip(found, spaces, strict=True) if not run.shipped], default=(0, "")
    )
    console.following(f"gencli runs slim {largest[1]}" if largest[0] else "gencli train ddpm")


def _rm(values: dict[str, Any]) -> None:
    from gencli.training import tidy

    paths = _chosen("rm", values)
    freed = files.space(*paths).freed
    for path in paths:
        for other in tidy.sharers(path):
            console.say(f"run {other} has its own copy of {path.name} and keeps working")
    _do("remove", "removed", paths, freed, tidy.remove, values["yes"])
    console.following("gencli runs")


def _slim(values: dict[str, Any]) -> None:
    from gencli.training import tidy

    paths = _chosen("slim", values)
    freed = files.space(*(path / "train" for path in paths)).freed
    console.say("slim runs sample and evaluate as before; they cannot be resumed")
    _do("slim", "slimmed", paths, freed, tidy.slim, values["yes"])
    console.following(f"gencli sample {paths[0].name}")


def _chosen(verb: str, values: dict[str, Any]) -> list[Path]:
    from gencli.training import tidy

    if "runs" not in values:
        raise GencliError(f"`gencli runs {verb}` needs a run", "see `gencli runs`")
    return tidy.chosen(values["runs"])


def _do(verb: str, done: str, paths: list[Path], freed: int, act: Callable[[Path], None], yes: bool) -> None:
    """Ask, act on each run, and say what became free."""
    names = ", ".join(path.name for path in paths)
    if not console.agreed(f"{verb} {names}, which frees {files.as_size(freed)}", yes):
        console.say("nothing was changed")
        raise typer.Exit(1)
    for path in paths:
        act(path)
        console.out(str(path))
    console.document(**{done: [str(path) for path in paths], "freed": freed})
    console.say(f"{done} {names}: {files.as_size(freed)} freed")
