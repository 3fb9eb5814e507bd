"""`gencli replay BUNDLE`: run again the one step whose loss, gradient or weights were not finite, and name the layer."""

from __future__ import annotations

from typing import Any

from gencli import runs
from gencli.cli import console
from gencli.cli.options import Flag, build
from gencli.errors import GencliError


def command() -> Any:
    """The `replay` command."""
    return build(
        "replay",
        "Run a step that was not finite again, from the bundle that training wrote, and name the first layer to blame.\n\n"
        "Exit code 0: it is not finite again; 1: it is finite here.",
        _FLAGS,
        run,
    )


_FLAGS = [
    Flag(
        "bundle",
        (),
        str,
        "RUN/train/not-finite-STEP.json, or a run: its newest",
        metavar="BUNDLE",
        complete=lambda incomplete: [run.name for run in runs.every() if run.name.startswith(incomplete)],
    ),
]


def run(values: dict[str, Any]) -> None:
    """Replay, and say what was found in one line."""
    from gencli.training.replay import find, replay

    if "bundle" not in values:
        raise GencliError("which bundle?", "gencli replay RUN, or its train/not-finite-STEP.json")
    path = find(values["bundle"])
    made = replay(path)
    then = made.bundle
    where = f"step {then['step']}, phase {then['phase']}"
    if not made.layer:
        trained = f"trained on {then.get('device', made.device)}, replayed on {made.device}"
        raise GencliError(
            f"{where}: the {then['what']} is finite here; training found {then['layer']} not finite",
            f"{trained}: replay it on the machine that trained",
            code=1,
        )
    other = f"; training said {then['layer']}" if made.layer != then["layer"] else ""
    verb = "are" if then["what"] == "weights" else "is"
    console.document(
        step=then["step"], phase=then["phase"], what=then["what"], layer=made.layer, recorded=then["layer"]
    )
    console.out(f"{where}: the {then['what']} {verb} not finite; first in {made.layer}{other}")
    console.following(f"gencli train {made.recipe} --clip 1")
