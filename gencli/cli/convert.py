"""`gencli convert RUN --to FORMAT` and `gencli convert PATH --from FORMAT`: a run in other programs, and back.

`gencli convert RUN --ema WIDTH` makes a run of another average of the same training; with `--to`, a file of it.
"""

from __future__ import annotations

import dataclasses
import shlex
import tempfile
from pathlib import Path
from typing import Any

from gencli import recipe as recipes
from gencli import registry, runs
from gencli.cli import console
from gencli.cli.options import Flag, build
from gencli.errors import GencliError

READS = (
    "dcgan",
    "diffusers",
    "dit",
    "edm",
    "edm2",
    "guided-diffusion",
    "image-gpt",
    "improved-diffusion",
    "ldm",
    "lora",
    "ncsnv2",
    "openai-ddpm",
    "pt",
    "safetensors",
    "score-sde",
    "stylegan2-ada",
    "taming-vqgan",
    "u-vit",
)
OFFICIAL = ("codec", "image_size", "recipe", "reference")  # what only the formats of other authors' checkpoints take


def command() -> Any:
    """The `convert` command."""
    return build("convert", "Turn a run into another program's format, or such a file into a run.", _flags(), run)


def _names(incomplete: str) -> list[str]:
    return [name for name in sorted({r.name for r in runs.every()}) if name.startswith(incomplete)]


def _likes(incomplete: str) -> list[str]:
    known = {*recipes.names(), *(r.name for r in runs.every())}
    return [name for name in sorted(known) if name.startswith(incomplete)]


def _recipes(incomplete: str) -> list[str]:
    return [name for name in sorted(recipes.names()) if name.startswith(incomplete)]


def _flags() -> list[Flag]:
    formats = tuple(registry.entries("converters"))
    complete = lambda known: lambda incomplete: [name for name in known if name.startswith(incomplete)]  # noqa: E731
    return [
        Flag("name", (), str, "a run or model; with --from, a file or folder", metavar="RUN|PATH", complete=_names),
        Flag("to", ("--to",), str, "the format to write", metavar="FORMAT", complete=complete(formats)),
        Flag("from", ("--from",), str, "the format to read", metavar="FORMAT", complete=complete(READS)),
        Flag(
            "ema",
            ("--ema",),
            float,
            "width of another average of the weights, a share of the run, of a run with --ema-profiles",
            shown="the run's own",
        ),
        Flag("out", ("--out",), str, "where to write", shown="converted/RUN…, or checkpoints for a new run"),
        Flag("like", ("--like",), str, "run or recipe that says what foreign weights are", complete=_likes),
        Flag("codec", ("--codec",), str, "autoencoder whose latents a released model is of", complete=_names),
        Flag("image_size", ("--image-size",), int, "side of a released model's images", shown="what its weights say"),
        Flag("recipe", ("--recipe",), str, "recipe for what a released file does not say", complete=_recipes),
        Flag("reference", ("--reference",), str, "file of a released model's inputs and outputs, to be compared"),
        Flag("called", ("--name",), str, "name of the new run", shown="as it was called, or RUN-ema-WIDTH"),
        Flag("verify", ("--verify/--no-verify",), bool, "compare the result with the original", shown="on"),
        Flag("overwrite", ("--overwrite",), bool, "write over what is there", default=False),
    ]


def run(values: dict[str, Any]) -> None:
    """Convert one way or the other."""
    if "name" not in values:
        raise GencliError("`gencli convert` needs a run or a path", "gencli convert ddpm --to diffusers")
    _check(values)
    done = _out(values) if "to" in values else _in(values) if "from" in values else _averaged(values)
    for note in done.notes:
        console.say(f"note: {note}")
    for check in done.checks:
        console.say(check.line)
    if done.unverified:
        console.say(f"not verified: {done.unverified}")
    checks = [{"what": c.what, "maximum_error": c.error, "allowed": c.most} for c in done.checks]
    console.document(verified=checks, unverified=done.unverified or None, notes=done.notes)
    console.result(done.path)
    console.following(_next(values, done.path))


def _check(values: dict[str, Any]) -> None:
    """Refuse flags that do not go together."""
    given = values.keys() & {"to", "from", "ema"}
    if not given or {"to", "from"} <= given:
        raise GencliError(
            "`gencli convert` needs either --to or --from, or --ema",
            "gencli convert RUN --to FORMAT, or PATH --from FORMAT: `gencli list converters` has them",
        )
    if {"ema", "from"} <= given:
        raise GencliError("--ema goes with a run, not with --from", "make a run of the file first")
    new_run = "from" if "to" in values else "ema"
    only = [(key, ("from",)) for key in ("like", *OFFICIAL)]
    for key, others in (*only, ("called", ("from", new_run)), ("overwrite", ("to",))):
        if values.get(key) and not given & set(others):
            flag = {"called": "name"}.get(key, key).replace("_", "-")
            raise GencliError(f"--{flag} goes with --{others[0]}", f"leave --{flag} out")


def _format(name: str, values: dict[str, Any] | None = None) -> Any:
    """The converter, with those of its settings that were given."""
    kind = registry.load("converters", name)
    given = {key: value for key, value in (values or {}).items() if key in OFFICIAL}
    known = {setting.name for setting in dataclasses.fields(kind.Config)}
    for key in given.keys() - known:
        flag = f"--{key.replace('_', '-')}"
        raise GencliError(f"{flag} goes with a released model's format, not with {name}", f"leave {flag} out")
    return kind.make(given)


def _out(values: dict[str, Any]) -> Any:
    """A run to a file or folder."""
    converter, found = _format(values["to"]), _run(values["name"])
    from gencli.adapters._base import folded
    from gencli.bundle import Run

    name = f"{found.name}{_suffix(values)}{converter.suffix}"
    target = Path(values["out"]) if "out" in values else Path("converted") / name
    if target.is_dir() and not converter.folder:
        target = target / name
    _free(target, converter.folder, values["overwrite"])
    verify, taken = values.get("verify", True), folded if converter.folds else lambda run: run
    if "ema" not in values:
        return converter.export(taken(Run.load(found.path)), target, verify)
    from gencli.training.posthoc import make_run

    with tempfile.TemporaryDirectory(prefix="gencli-convert-") as scratch:
        path, note = make_run(found.path, values["ema"], Path(scratch), None, _typed())
        done = converter.export(taken(Run.load(path)), target, verify)
    return dataclasses.replace(done, notes=[note, *done.notes])


def _run(name: str) -> runs.Found:
    """The run that is to be converted."""
    found = runs.named(name, as_codec=True)  # a codec is itself, not the prior over it
    if not found.ready:
        raise GencliError(f"run {found.name} has no weights yet", f"gencli train {found.model} --resume {found.name}")
    return found


def _suffix(values: dict[str, Any]) -> str:
    return f"-ema-{values['ema']:g}" if "ema" in values else ""


def _typed() -> str:
    return shlex.join(["gencli", "convert", *console.state.args])


def _averaged(values: dict[str, Any]) -> Any:
    """A run to another of the same training, with another average of its weights."""
    from gencli.converters._base import Done
    from gencli.training.posthoc import make_run

    found, root = _run(values["name"]), Path(values.get("out", "checkpoints"))
    path, note = make_run(found.path, values["ema"], root, values.get("called"), _typed())
    _describe(path)
    return Done(path, [note], [])


def _describe(path: Path) -> None:
    """Write a new run's card, and say what it is called."""
    from gencli.bundle import read_config
    from gencli.report.card import write_card

    write_card(path, read_config(path))
    console.document(run=path.name)


def _free(target: Path, folder: bool, overwrite: bool) -> None:
    """Refuse a place that is taken; a folder is replaced only if a conversion made it."""
    if not target.exists():
        return
    if not overwrite:
        raise GencliError(f"{target} is there already", "choose another --out, or add --overwrite")
    if folder and not (target / "gencli.json").is_file():
        raise GencliError(f"{target} was not made by `gencli convert`: it is not replaced", "choose another --out")


def _in(values: dict[str, Any]) -> Any:
    """A file or folder to a run."""
    if registry.public_name(values["from"]) not in READS:
        if registry.public_name(values["from"]) in registry.entries("converters"):
            raise GencliError(
                f"--from is '{values['from']}', which is only written", f"choose one of {', '.join(READS)}"
            )
        raise registry.unknown("format", values["from"], READS, "gencli convert --help")
    converter = _format(values["from"], values)
    path = Path(values["name"])
    if not (path.is_dir() if converter.folder else path.is_file()):
        what = "folder" if converter.folder else "file"
        raise GencliError(
            f"no {what} '{path}'", f"give the path of a {what}: gencli convert PATH --from {values['from']}"
        )
    like = _like(values["like"]) if "like" in values else None
    root, name = Path(values.get("out", "checkpoints")), values.get("called")
    done = converter.bring(path, like, root, name, _typed(), values.get("verify", True))
    _describe(done.path)
    return done


def _like(name: str) -> Any:
    """The run called NAME; else what the recipe NAME would train; else the newest run of the model NAME."""
    from gencli.bundle import Run

    found = runs.find(name)
    if found is not None:
        return Run.load(found.path)
    if not name.endswith(".toml") and registry.public_name(name) not in recipes.names():
        return Run.load(runs.named(name).path)
    from gencli.converters._base import described
    from gencli.data import open_table
    from gencli.training.session import resolve

    table = resolve(recipes.load(name))
    data = open_table(table["data"])
    made = Run.build(table, data.spec)
    items = {split: len(data.split(split)) for split in ("train", "test")}
    made.config = described(made, {"name": data.name, "hash": data.hash, "items": items})
    return made


def _next(values: dict[str, Any], path: Path) -> str:
    if "to" not in values:
        default = path.parent == Path("checkpoints")
        return f"gencli sample {path.name}" if default else f"gencli sample {shlex.quote(str(path))}"
    if registry.public_name(values["to"]) in READS:
        like = "" if registry.load("converters", values["to"]).folds else " --like BASE"
        return f"gencli convert {shlex.quote(str(path))} --from {registry.public_name(values['to'])}{like}"
    return f"gencli info {values['to']}"
