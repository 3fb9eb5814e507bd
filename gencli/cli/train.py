"""`gencli train MODEL|RECIPE`: one subcommand a model and recipe, its settings as flags."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

from gencli import home, registry, runs
from gencli import recipe as recipes
from gencli.cli import console, nesting, plan, verifying
from gencli.cli.options import Flag, build, chosen_value, flag_of, nested
from gencli.config import choose, merge, settings
from gencli.errors import GencliError

COMMON = (
    "steps",
    "batch_size",
    "lr",
    "ema",
    "precision",
    "compile",
    "grad_accum",
    "seed",
    "save_every",
    "sample_every",
    "keep",
    "track",
)


class Train(TyperGroup):
    """A subcommand for every model and recipe; unknown names are answered with near ones."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted({*registry.entries("models"), *recipes.names()})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _summary(cmd_name)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = registry.public_name(args[0])
        return name, _command(args[0], args[1:]), args[1:]


def command() -> Any:
    """The `train` group."""
    app = typer.Typer(cls=Train, add_completion=False, no_args_is_help=True, rich_markup_mode="rich")

    @app.callback(
        subcommand_metavar="MODEL|RECIPE [OPTIONS]",
        epilog="`gencli train MODEL --help` lists what can be set; a bare model name is its laptop recipe",
    )
    def _train() -> None:
        """Train a model."""

    made = typer.main.get_command(app)
    made.name = "train"
    return made


def _summary(name: str) -> Any:
    """A light stand-in for help screens and completion: no torch."""
    key = registry.public_name(name)
    path = recipes.names().get(key)
    text = recipes.summary(path) if path else registry.entry("models", name).title
    return build(key, text, [], lambda values: None)


def _command(name: str, args: list[str]) -> Any:
    """The real subcommand, with the flags of the model, network and data chosen in `args`."""
    data = chosen_value(args, "--data")
    begun, teacher = chosen_value(args, "--from"), chosen_value(args, "--teacher")
    table = nesting.begun_with(name, _registered(data), "--smoke" in args, begun, teacher)
    model = registry.entry("models", table["model"]["name"])
    chosen = {key: value for key, value in table["model"].items() if key != "name"}
    rows = settings(model.load().Config, chosen=chosen)
    for row in rows:
        picked = chosen_value(args, f"--{row.path.replace('_', '-')}") if row.part else None
        if picked:
            chosen = merge(chosen, nested({row.path: picked}))
    return build(
        table["recipe"],
        f"{model.title}\n\n{_paper(model)}",
        _flags(model, chosen, table, data, nesting.adapter_flags(args)),
        lambda v: run(name, v),
    )


def _paper(model: registry.Entry) -> str:
    return f"{model.authors}, {model.year} · arXiv:{model.arxiv}" if model.arxiv else model.family


def _flags(
    model: registry.Entry, chosen: dict[str, Any], table: dict[str, Any], data: str | None, adapter: list[Flag]
) -> list[Flag]:
    from gencli.training.settings import TrainConfig

    given = table.get("data", {"name": "digits"})
    given = nesting.data_of(given, data, table.get("from")) if data else given
    picked = choose("models", {**chosen, "name": model.name}, where="model")
    given = picked.load().data_for(picked.config, given)
    flags = [
        Flag(
            "data",
            ("--data",),
            str,
            "a data set's name, or a folder or zip of images",
            "Data",
            shown=given["name"],
            complete=_data_names,
        ),
    ]
    taken = {"data"}
    for row in settings(
        registry.load("data", given["name"]).Config, chosen={k: v for k, v in given.items() if k != "name"}
    ):
        if row.path != "path":
            taken.add(row.path)
            flags.append(flag_of(row, f"data.{row.path}", "Data"))
    trained = settings(TrainConfig, chosen=table.get("train", {}))
    for row in trained:
        taken.add(row.path)
        flags.append(
            flag_of(row, f"train.{row.path}", "Training" if row.path in COMMON else "Optimiser and augmentation")
        )
    for row in settings(model.load().Config, chosen=chosen):
        name = f"model.{row.path}" if row.path in taken else row.path
        flags.append(flag_of(row, f"model.{row.path}", "Network" if "." in row.path else "Model", name))
    return [*flags, *_RUN, *adapter]


def _data_names(incomplete: str) -> list[str]:
    return [name for name in registry.entries("data") if name.startswith(incomplete)]


def _run_names(incomplete: str) -> list[str]:
    return [run.name for run in runs.every() if run.name.startswith(incomplete)]


_RUN = [
    Flag(
        "codec",
        ("--codec",),
        str,
        "train on the latents of this run (newest of a model, a run's name, or a folder); RUN:LEVEL of one with levels",
        "Run",
        complete=_run_names,
    ),
    Flag(
        "source",
        ("--source",),
        list[str],
        "the run that makes a condition when the new run is sampled; once for each condition",
        "Run",
        default=[],
        metavar="KEY=RUN",
    ),
    Flag(
        "from",
        ("--from",),
        str,
        "begin from the weights of this run, with its settings, data, image size and codec unless others are given",
        "Run",
        metavar="RUN",
        complete=_run_names,
    ),
    nesting.ADAPTER,
    Flag("resume", ("--resume",), str, "continue the newest run of this model, or RUN", "Run", metavar="[RUN]"),
    Flag("name", ("--name",), str, "the run's name", "Run", shown="MODEL-DATA"),
    Flag("out", ("--out",), str, "the folder in which the run's folder is made", "Run", shown="checkpoints"),
    Flag("smoke", ("--smoke",), bool, "the recipe in miniature, to see that everything works", "Run", default=False),
    Flag(
        "plan",
        ("--plan",),
        bool,
        "show the time, memory and disk it would take, and do not train",
        "Run",
        default=False,
    ),
    verifying.FLAG,
]


def run(name: str, values: dict[str, Any]) -> None:
    """Train with the flags that were given."""
    from gencli.core import main_first
    from gencli.data import open_table
    from gencli.training.session import Session, refuse_changes, resolve

    own: dict[str, Any] = {
        key: values.pop(key)
        for key in (
            "data",
            "codec",
            "source",
            "from",
            "adapter",
            "resume",
            "name",
            "out",
            "smoke",
            "plan",
            "verify_resume",
        )
        if key in values
    }
    given: dict[str, Any] = {key: nested(_under(key, values)) for key in ("model", "data", "train")}
    own["teacher"] = given["model"].get("teacher")
    nesting.begin_by_recipe(name, own)
    if "adapter" in own:
        given["adapters"] = nesting.adapters(own, nested(_under("adapter", values)))
    if {"from", "resume"} <= own.keys():
        raise GencliError("--from begins a new run, --resume continues an old one", "give one of them")
    old = _to_resume(name, own["resume"]) if "resume" in own else None
    sources = nesting.sources(own.get("source", []), old)
    base, codec_run = (dict(old.config["recipe"]), None) if old else _fresh(name, own)
    if not old:
        given["model"].pop("teacher", None)  # it stands in the base, by the name of its run
    if "data" in own:
        base["data"] = nesting.data_of(base["data"], own["data"], own.get("from"))
        if other := own.get("from", own["teacher"]):
            base["data"] = nesting.sized_like(base["data"], runs.named(other))
    table = resolve(merge(base, {key: value for key, value in given.items() if value}))
    data = open_table(table["data"])
    changes = refuse_changes(resolve(old.config["recipe"]), table, old.name) if old else []
    root = Path(own.get("out", "checkpoints"))
    begun = runs.named(own["from"]).path if "from" in own else None
    if own.get("plan"):
        codec_run, done = (nesting.codec_of(old), old.config["step"]) if old else (codec_run, 0)
        return plan.show(table, data, root, codec_run, done, nesting.sources_of(old) if old else sources, begun)
    if own.get("verify_resume"):
        return verifying.show(table, codec_run, sources, begun, old)
    with console.hook() as data.progress:
        with main_first():
            notes = [*data.notes, *changes]
        session = Session(table, data, root, own.get("name"), codec_run, old.path if old else None, sources, begun)
    _watch(session, [*notes, *session.notes], name)


def _under(table: str, values: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix(f"{table}."): value for key, value in values.items() if key.startswith(f"{table}.")}


def _fresh(name: str, own: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """The recipe of a new run, and the run whose latents are its data."""
    from gencli.bundle import Run

    data, begun, teacher = _registered(own.get("data")), own.get("from"), own["teacher"]
    base = nesting.begun_with(name, data, own.get("smoke", False), begun, teacher)
    base.setdefault("data", {"name": "digits"})
    if "codec" not in own:
        other = begun or teacher
        return base, nesting.codec_of(runs.named(other)) if other else None
    wanted, level = nesting.levelled(own["codec"])
    codec_run = Run.load(runs.named(wanted, as_codec=True).path)
    base["data"] = codec_run.config["recipe"]["data"]
    base.pop("codecs", None)
    if level:
        base["codecs"] = [{"name": "learned", "level": level}]
    return base, codec_run


def _registered(data: str | None) -> str | None:
    """The public name of a registered data set; None for a path or nothing."""
    key = registry.public_name(data or "")
    return key if key in registry.entries("data") else None


def _to_resume(name: str, which: str) -> runs.Found:
    key = Path(name).stem if name.endswith(".toml") else registry.public_name(name)
    if which != "newest":
        found = runs.named(which)
        if found.shipped:
            raise GencliError(
                f"run {found.name} came with gencli and is read-only", f"start your own: gencli train {found.model}"
            )
        if recipes.load(name)["model"]["name"] != found.model:
            raise GencliError(
                f"run {found.name} is of model {found.model}, not of {key}",
                f"gencli train {found.model} --resume {found.name}",
            )
        return found
    mine = [r for r in runs.every() if key in (r.model, r.config["recipe"].get("recipe")) and not r.shipped]
    if not mine:
        raise GencliError(f"no run of '{key}' to resume; looked in {runs.places()}", f"start one: gencli train {key}")
    return mine[0]


@contextmanager
def _signals(session: Any) -> Iterator[None]:
    """The first signal asks the session to stop after this step; a second one ends the process at once."""

    def ask(number: int, frame: Any) -> None:
        if session.asked:
            import os

            os._exit(128 + number)
        session.asked = number
        console.say("stopping after this step; once more to end at once")

    names = [n for n in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, n)]
    before = {n: signal.signal(getattr(signal, n), ask) for n in names}
    try:
        yield
    finally:
        for n, handler in before.items():
            signal.signal(getattr(signal, n), handler)


def _watch(session: Any, notes: list[str], name: str) -> None:
    from gencli import device
    from gencli.core import world

    here, total, train = world(), session.train.steps, session.train
    label = f"{session.folder} · {session.recipe['recipe']} · {session.config['parameters']:,} parameters"
    several = f" · {here.size} processes" if here.size > 1 else ""
    console.say(f"run {label} · {session.data.name} · batch {train.batch_size} · {total} steps{several}")
    for note in filter(None, [device.unused_gpu(), *notes]):
        console.say(note)
    with _signals(session), console.task("training", total, "steps") as task:
        for event in session.events():
            if event.kind == "note":
                console.say(event.text)
            elif event.kind == "start":
                task._first = task.done = event.step
            elif event.kind == "step":
                text = "  ".join(f"{key} {value:.4g}" for key, value in event.values.items())
                task.advance(event.step, text)
            elif event.kind == "saved":
                images = train.batch_size * task.rate()
                figures = "".join(f" · {key} {value:.3g}" for key, value in event.values.items())
                console.say(f"saved at step {event.step} · {images:.0f} items/s{figures} · {task.line()}")
    if here.main:
        _finish(session, event.step, name)
    if session.stop:
        raise typer.Exit(128 + session.stop)


def _finish(session: Any, step: int, name: str) -> None:
    from gencli.report.card import write_card

    write_card(session.folder, session.config)
    console.document(run=session.folder.name, step=step)
    console.result(session.folder)
    if session.stop:
        console.say(f"stopped at step {step}; continue with: gencli train {name} --resume {_called(session.folder)}")
    else:
        console.following(_next(session))


def _next(session: Any) -> str:
    from gencli.bundle import DEFAULT_SAMPLERS, prior_over
    from gencli.core import Classifier

    if any(isinstance(session.run.model, interface) for interface, _ in DEFAULT_SAMPLERS):
        return _below(session) or f"gencli sample {_called(session.folder)}"
    if getattr(session.run.model, "clean_only", False):
        return f"gencli eval accuracy -c {_called(session.folder)}"
    if isinstance(session.run.model, Classifier):
        return _guided_by(_called(session.folder))
    return prior_over(session.run.model, _called(session.folder))


def _below(session: Any) -> str:
    """The prior of the next level, after that of one which is not the last."""
    from gencli.codecs.learned import Learned

    learned = next((codec for codec in session.run.codecs if isinstance(codec, Learned) and codec.below), None)
    if learned is None:
        return ""
    codec = f"--codec {learned.name}:{learned.below} --source {learned.config.level}={_called(session.folder)}"
    return f"gencli train {session.recipe['model']['name']} {codec}"


def _guided_by(classifier: str) -> str:
    """A sample of the newest run that a classifier can guide, or how to make one."""
    fits = registry.load("samplers", "ddim").suits
    found = runs.newest(lambda run: (model := registry.attempt("models", run.model)) is not None and fits(model))
    return f"gencli sample {found.name} --class 0 --classifier {classifier}" if found else "gencli train iddpm"


def _called(folder: Path) -> str:
    """How a command names a run: its name where runs are looked for, else its path."""
    known = any(folder.parent.absolute() == place.absolute() for place in home.run_folders())
    return folder.name if known else shlex.quote(str(folder))
