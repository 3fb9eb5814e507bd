"""`gencli sample SAMPLER|RUN|MODEL`: pictures, a receipt, and on request the way there as an animation."""

from __future__ import annotations

import json
import os
import shlex
import time
from pathlib import Path
from typing import Any

import typer
import typer.main
from typer.core import TyperGroup

from gencli import files, registry, runs
from gencli.cli import completing, console, guiding, painting, restoring, walking
from gencli.cli.options import Flag, build, chosen_value, flag_of, nested
from gencli.config import settings
from gencli.errors import GencliError


class Sample(TyperGroup):
    """A subcommand for every sampler, run and trained model."""

    def list_commands(self, ctx: Any) -> list[str]:
        found = runs.every()
        return sorted({*registry.entries("samplers"), *(r.name for r in found), *(m for r in found for m in r.models)})

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        entry = registry.entries("samplers").get(registry.public_name(cmd_name))
        return build(cmd_name, entry.title if entry else f"draw from run or model {cmd_name}", [], lambda values: None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        return args[0], _command(args[0], args[1:]), args[1:]


def command() -> Any:
    """The `sample` group."""
    app = typer.Typer(cls=Sample, add_completion=False, no_args_is_help=True, rich_markup_mode="rich")

    @app.callback(
        subcommand_metavar="SAMPLER|RUN|MODEL [OPTIONS]",
        epilog="NAME is looked up as a sampler, then a run, then a model; `gencli sample NAME --help` lists what can be set",
    )
    def _sample() -> None:
        """Draw from a trained model."""

    made = typer.main.get_command(app)
    made.name = "sample"
    return made


def resolve(name: str, checkpoint: str | None, sampler: str | None) -> tuple[runs.Found, str | None]:
    """The run and the sampler (None = the run's own) that NAME means: sampler, then run, then model."""
    key = registry.public_name(name)
    if key in registry.entries("samplers"):
        if checkpoint:
            return runs.named(checkpoint), key
        fits = registry.load("samplers", key).suits
        found = runs.newest(lambda run: (model := registry.attempt("models", run.model)) is not None and fits(model))
        if found is None:
            raise GencliError(
                f"no checkpoint yet that sampler {key} can use; looked in {runs.places()}",
                "train one: gencli train ddpm",
            )
        return found, key
    if checkpoint:
        run = runs.named(checkpoint)
        if key in run.models:
            return run, sampler
        raise GencliError(
            f"'{name}' is no sampler, and not the model of run {run.name}",
            f"gencli sample {run.name}, or see `gencli list samplers`",
        )
    try:
        return runs.named(name), sampler
    except runs.NoRun:
        if key in registry.entries("models"):
            raise GencliError(
                f"no checkpoint of model {key} yet; looked in {runs.places()}", f"train one: gencli train {key}"
            ) from None
        known = {*registry.entries("samplers"), *registry.entries("models"), *(r.name for r in runs.every())}
        raise registry.unknown("sampler, run or model", name, known, "gencli list samplers") from None


def _command(name: str, args: list[str]) -> Any:
    completing = any(key.endswith("_COMPLETE") for key in os.environ)
    if ("--help" in args or completing) and registry.public_name(name) in registry.entries("samplers"):
        chosen, own = registry.public_name(name), {}
        what = registry.entry("samplers", chosen).title
    else:
        checkpoint = chosen_value(args, "-c") or chosen_value(args, "--checkpoint")
        run, named = resolve(name, checkpoint, chosen_value(args, "--sampler"))
        own = dict(run.config["recipe"].get("sample", {}))
        chosen = named or own.get("name") or _default(run)
        own = own if registry.public_name(own.get("name", "")) == registry.public_name(chosen) else {}
        what = f"Draw from run {run.name} with the sampler {chosen}"
    picked = {key: value for key, value in own.items() if key not in ("name", "guidance")}
    kind = registry.load("samplers", chosen).Config
    for row in settings(kind, chosen=picked):
        if row.part and (part := chosen_value(args, f"--{row.path}")):
            picked = {**picked, row.path: {"name": part}}
    rows = settings(kind, chosen=picked)
    flags = [flag_of(row, f"sampler.{row.path}", f"Sampler {chosen}") for row in rows]
    return build(name, what, [*_FIXED, *flags], lambda values: run_command(name, values))


def _default(run: runs.Found) -> str:
    from gencli.bundle import Run

    return Run.load(run.path).default_sampler()


_FIXED = [
    Flag(
        "checkpoint",
        ("--checkpoint", "-c"),
        str,
        "the run to draw from",
        "What",
        shown="the newest that fits",
        complete=guiding.run_names,
    ),
    Flag("sampler", ("--sampler",), str, "the sampler, when NAME is a run or model", "What", shown="the run's own"),
    Flag("n", ("-n", "--number"), int, "how many; with --input, of each", "What", shown="16; with --input 4"),
    Flag("seed", ("--seed",), int, "seed of the first; the next has the next seed", "What", shown="0"),
    Flag("seeds", ("--seeds",), str, "seeds one by one: 0-63 or 3,5,8", "What"),
    Flag("classes", ("--class",), str, "names or ids, comma-separated, used in turn", "What", shown="all in turn"),
    *completing.FLAGS,
    *restoring.FLAGS,
    *guiding.FLAGS,
    *walking.FLAGS,
    Flag(
        "trajectory", ("--trajectory",), bool, "also write the way there as an animated WebP", "Output", default=False
    ),
    Flag(
        "attention",
        ("--attention",),
        bool,
        "also draw what each token of the first image takes from each, in every block and head of a transformer",
        "Output",
        default=False,
    ),
    Flag(
        "timesteps",
        ("--print-timesteps",),
        bool,
        "only print the noise levels at which the network would be called",
        "Output",
        default=False,
    ),
    Flag("show", ("--show",), bool, "draw the grid in the terminal", "Output", default=False),
    Flag("out", ("--out",), str, "folder", "Output", shown="samples/RUN/SAMPLER-STEPS-SEED"),
    Flag(
        "npz",
        ("--npz",),
        bool,
        "also write samples.npz: uint8 (N, height, width, channels), and the classes",
        "Output",
        default=False,
    ),
    Flag("overwrite", ("--overwrite",), bool, "write over files that are there", "Output", default=False),
    Flag("batch", ("--batch-size",), int, "images computed together", "Compute", shown="64"),
    Flag("exact", ("--exact",), bool, "bit-equal images whatever -n, by padded batches", "Compute", default=False),
]


def parse_seeds(values: dict[str, Any], number: int = 16) -> list[int]:
    """`--seeds 0-63` or `3,5,8`; or `--seed` and `-n`, which is `number` where it is not given."""
    if "seeds" not in values:
        number = values.get("n", number)
        if number < 1:
            raise GencliError(f"-n is {number}", "give 1 or more")
        first = values.get("seed", 0)
        if first < 0:
            raise GencliError(f"--seed is {first}", "give 0 or more")
        return list(range(first, first + number))
    made: list[int] = []
    for part in values["seeds"].split(","):
        low, _, high = part.strip().partition("-")
        if not low.isdigit() or (high and not high.isdigit()) or (high and int(high) < int(low)):
            raise GencliError(f"--seeds is '{values['seeds']}'", "give a range such as 0-63, or a list such as 3,5,8")
        made += range(int(low), int(high or low) + 1)
    return made


def parse_classes(text: str | None, run: Any, guidance: Any = None) -> list[int] | None:
    """Names or ids to ids, of the model's classes or of those of the classifier that guides it."""
    from gencli.evaluation.generate import class_field

    if text is None:
        return None
    field = class_field(run, guidance)
    if field is None:
        raise GencliError(
            f"run {run.name} was trained without classes",
            "leave --class out, train on labelled data, or guide by a --classifier",
        )
    names = [name.lower() for name in field.names]
    made = []
    for part in text.split(","):
        word = part.strip()
        if word.lower() in names:
            made.append(names.index(word.lower()))
        elif word.lstrip("-").isdigit():
            made.append(int(word))
        else:
            raise registry.unknown("class", word, names, f"gencli info {run.name}")
    return made


def run_command(name: str, values: dict[str, Any]) -> None:
    """Sample and write."""
    import torch

    from gencli import device
    from gencli.bundle import Run
    from gencli.core import world
    from gencli.evaluation.conditions import conditions_for
    from gencli.evaluation.generate import (
        Request,
        cost,
        divided,
        generate,
        receipt,
        resolved,
        spent,
        steps_of,
    )
    from gencli.evaluation.rejection import only
    from gencli.report.drawn import moving, save_attention
    from gencli.report.kinds import writer

    completing.check_flags(values)
    found, sampler_name = resolve(name, values.get("checkpoint"), values.get("sampler"))
    run = Run.load(found.path, device.default())
    table = nested({key.removeprefix("sampler."): value for key, value in values.items() if key.startswith("sampler.")})
    sampler = run.sampler(sampler_name, table)
    if values["attention"]:
        completing.check_attention(run)
    if values["npz"] and run.data_spec.x.kind != "image":
        raise GencliError(f"--npz is of images, run {run.name} makes {run.data_spec.x.kind}", "leave it out")
    if values["timesteps"]:
        if world().main:
            _timesteps(run, sampler)
        return
    if what := walking.asked(values):
        if world().main:
            chosen = parse_classes(values.get("classes"), run)
            walking.show(what, run, sampler, values, chosen, lambda part: _folder(values, run.name, part))
        return
    seeds = parse_seeds(values, completing.EACH if "input" in values else 16)
    guidance = guiding.guidance_of(values, run)
    named = None if completing.without_class(values, run) else values.get("classes")
    classes = parse_classes(named, run, guidance)
    completion = _given(values, run, sampler, len(seeds))
    rejection = completing.Rejecting.of(values, run, seeds, guidance)
    seeds = rejection.seeds if rejection else seeds
    cond = {} if completion and not classes else conditions_for(run, seeds, classes, guidance)
    if completion:
        seeds, cond = completion.asked(run, seeds, cond)
    micro = values.get("batch", 64)
    if micro < 1:
        raise GencliError(f"--batch-size is {micro}", "give 1 or more")
    here = world()
    asked = resolved(run, Request(seeds, cond, sampler, guidance, micro, values["exact"], values["trajectory"]))
    request = divided(asked, here.size)
    if not here.main:
        for _ in generate(run, request, here):
            pass
        return
    steps, calls = cost(run, request)
    each = steps_of(run, sampler)
    part = completion.name if completion else each
    folder = _folder(values, run.name, f"{sampler.public_name()}-{part}-{seeds[0]}")
    guided = "".join(f" · {key} {name}" for key, name in guiding.names_of(request.guidance))
    guided += f" · {completion.what}" if completion else ""
    what = f"sampler {sampler.public_name()} · checkpoint {run.name} · {each} steps{guided}"
    console.say(f"{what} · {len(seeds)} images · {calls} network evaluations")
    for note in completion.notes if completion else []:
        console.say(f"note: {note}")
    began = time.perf_counter()
    done = []
    with console.task("sampling", steps, "steps") as task:
        for progress in generate(run, request, here):
            task.advance(progress.step)
            if progress.chunk is not None:
                done.append(progress)
    seconds = time.perf_counter() - began
    facts = {**receipt(run, request), "seconds": round(seconds, 3)}
    rows: list[dict[str, Any]] = [{} for _ in seeds]
    if completion:
        done, rows = completion.done(done), completion.rows()
        facts |= completion.facts()
    if rejection:
        scores, kept = rejection.judged(done, cond)
        facts |= rejection.facts(scores, kept)
        done, seeds = only(done, kept), [seeds[i] for i in kept]
        cond, rows = {key: value[kept] for key, value in cond.items()}, rejection.rows(scores[kept].exp().tolist())
        console.say("kept {} of {}: {}".format(len(seeds), len(scores), rejection.words(facts["rejection"])))
    made = torch.cat([progress.chunk for progress in done if progress.chunk is not None])
    if taken := spent(done):
        facts["evaluations"] = taken
        console.say("an image took {mean:g} evaluations, from {least} to {most}".format(**taken))
    sheet = completion.sheet(made) if completion else (made, None)
    write(run, folder, made, seeds, cond, facts, rows, sheet)
    if values["npz"]:
        writer("image").save_array(folder / "samples.npz", made, cond.get("label"))
    if values["trajectory"]:
        moving(run.data_spec.x.kind, folder, done)
    if values["attention"]:
        save_attention(folder / "attention.png", completing.attention_of(run, made[:1], cond))
    if values["show"]:
        _show(run, *sheet)
    console.document(run=run.name, images=len(seeds), seconds=round(seconds, 3))
    console.say(f"{len(seeds)} images in {console.clock(seconds)}")
    console.result(folder)
    console.following(f"gencli report {run.name}" if completion else f"gencli eval fid -c {run.name}")


def _given(values: dict[str, Any], run: Any, sampler: Any, each: int) -> Any:
    """What is done with `--input`: restore, paint or edit, or complete it; None without."""
    kinds = (restoring.Restoring, painting.Painting, completing.Completing)
    return next((made for kind in kinds if (made := kind.of(values, run, sampler, each))), None)


def _folder(values: dict[str, Any], run: str, name: str) -> Path:
    from gencli.training.session import make_folder

    if "out" not in values:
        return make_folder(Path("samples") / run, name)
    folder = Path(values["out"])
    if folder.exists() and not folder.is_dir():
        raise GencliError(f"{folder} is a file, not a folder", "give another --out")
    if folder.exists() and any(folder.iterdir()) and not values["overwrite"]:
        raise GencliError(f"{folder} is not empty", "give another --out, or --overwrite")
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def write(
    run: Any,
    folder: Path,
    items: Any,
    seeds: list[int],
    cond: dict[str, Any],
    facts: dict[str, Any],
    rows: list[dict[str, Any]],
    sheet: tuple[Any, int | None],
) -> None:
    """Grid, numbered items and the receipt; `rows` are more facts of the items, `sheet` is the grid and its columns."""
    from gencli import __version__
    from gencli.evaluation.receipts import of_making
    from gencli.report.kinds import writer

    kind = writer(run.data_spec.x.kind)
    names = kind.save_items(folder, items, [f"{i:05d}" for i in range(len(items))])
    shown, columns = sheet
    kind.save_grid(folder / "grid.png", shown, **({} if columns is None else {"columns": columns}))
    numbers = {key: value for key, value in cond.items() if value.ndim == 1}
    told = [
        {"file": Path(file).name, "seed": seed, **{key: int(value[i]) for key, value in numbers.items()}, **rows[i]}
        for i, (file, seed) in enumerate(zip(names, seeds, strict=True))
    ]
    codec = "float array" if run.data_spec.x.kind == "points" else "PNG"
    document = {"schema": 1, "gencli": __version__, **facts, **of_making(run), "file_codec": codec, "items": told}
    files.atomic_write(folder / "samples.json", (json.dumps(document, indent=1) + "\n").encode())


def _timesteps(run: Any, sampler: Any) -> None:
    """Where the network would be called, and nothing is drawn."""
    from gencli.evaluation.timesteps import visited

    calls = visited(run, sampler)
    steps = calls[-1].step
    console.say(f"sampler {sampler.public_name()} · checkpoint {run.name} · {steps} steps · {len(calls)} evaluations")
    console.document(run=run.name, sampler=sampler.public_name(), timesteps=[call.row() for call in calls])
    rows: list[list[Any]] = []
    for call in calls:
        numbers = (call.told, call.sigma, call.alpha_bar, call.log_snr)
        rows.append([call.step, call.evaluation, *("" if x is None else f"{x:.6g}" for x in numbers)])
    console.table(rows, ["step", "evaluation", "network is told", "sigma", "alpha bar", "log SNR"])
    console.following("gencli " + shlex.join(["sample", *(a for a in console.state.args if a != "--print-timesteps")]))


def _show(run: Any, items: Any, columns: int | None) -> None:
    from gencli.report.kinds import writer

    if run.data_spec.x.kind != "image":
        raise GencliError("--show draws images only", "open the grid.png in the folder")
    kind = writer("image")
    if console.state.quiet or console.state.json:
        return
    console.picture(kind.half_blocks(kind.grid(items, columns, scale=1)))
