"""`gencli choose --data D --budget T`: which model to train on these data, with reasons, times and commands."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gencli import registry
from gencli.cli import console
from gencli.cli.options import Flag, build
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.evaluation.choose import Answer, Facts

BUDGET = "30m"
NEEDS = ("quality", "likelihood", "speed", "editing", "latent")


def command() -> Any:
    """The `choose` command."""
    return build("choose", "Say which model to train on your data in the time you have, and why.", _FLAGS, run)


_FLAGS = [
    Flag(
        "data",
        ("--data",),
        str,
        "a data set's name, or a folder or zip of images",
        complete=lambda incomplete: [name for name in registry.entries("data") if name.startswith(incomplete)],
    ),
    Flag("budget", ("--budget",), str, "time of training: 600s, 10m, 1h", shown=BUDGET),
    Flag(
        "need",
        ("--need",),
        str,
        "what matters most",
        shown=NEEDS[0],
        metavar="|".join(NEEDS),
        complete=lambda incomplete: [name for name in NEEDS if name.startswith(incomplete)],
    ),
]


def run(values: dict[str, Any]) -> None:
    """Look, probe, and print the best three."""
    if "data" not in values:
        raise GencliError("`gencli choose` needs data", "gencli choose --data ./my-photos --budget 30m")
    need = values.get("need", NEEDS[0])
    if need not in NEEDS:
        raise registry.unknown("need", need, NEEDS, "gencli choose --help")
    from gencli.evaluation.budget import seconds_of
    from gencli.evaluation.choose import ANSWERS, Answer, answers, best, facts_of

    seconds = seconds_of(values.get("budget", BUDGET))
    with console.hook() as progress:
        facts = facts_of(values["data"], progress)
    console.say(f"{facts.name}: {facts.words()}")
    for note in _notes(facts, need):
        console.say(f"note: {note}")
    console.say(f"probing what fits for {console.clock(seconds)} on this machine, some 20 seconds each")
    found: list[Answer] = []
    with console.hook() as progress:
        for one in answers(values["data"], facts, seconds, need, progress):
            if isinstance(one, Answer):
                found.append(one)
            else:
                console.say(one)
    if not found:
        raise GencliError(
            f"a budget of {seconds:g}s holds none of gencli's recipes on {facts.name}",
            "give a larger --budget, or smaller images: `gencli train vae --help` lists --image-size",
        )
    _show(best(found)[:ANSWERS], facts, seconds)


def _notes(facts: Facts, need: str) -> list[str]:
    """What a person should know whatever is chosen."""
    from gencli import runs

    made = []
    if facts.captions:
        made.append(f"the {facts.captions:,} captions are not used: no model of gencli takes text")
    if not facts.held_out:
        made.append("nothing is held out, so nothing can be evaluated: add images")
    if need == "editing":
        made.append("gencli has no command that edits yet; these are the models that editing starts from")
    shipped = [run for run in runs.every() if run.shipped and run.config["data"]["name"] == facts.name]
    if shipped:
        names = ", ".join(f"`gencli sample {run.name}`" for run in shipped)
        made.append(f"trained models of {facts.name} came with gencli: {names}")
    return made


def _show(answers: list[Answer], facts: Facts, seconds: float) -> None:
    rows = [
        [number, one.model, console.clock(one.seconds), f"{one.steps:,}", one.why, one.command]
        for number, one in enumerate(answers, 1)
    ]
    console.table(rows, ["rank", "model", "time", "steps", "why", "command"])
    console.document(data=asdict(facts), budget=seconds, answers=[asdict(one) for one in answers])
    if console.state.quiet:
        console.out(answers[0].command)
    console.following(answers[0].command)
