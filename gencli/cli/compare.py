"""`gencli compare [RUN]`: several samplers on one run, as a grid of pictures and a table of what each cost and made.

Of several runs, and with `--models`, it compares families of models: `cli/families.py`.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli import registry, runs
from gencli.cli import console, families, guiding
from gencli.cli.options import Flag, build
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.evaluation.compare import Bench, Cell, Ledger, Planned

DEFAULT = ("ddim", "heun", "dpmpp-2m", "ancestral")
STEPS = (10, 20, 50)
_HELP = (
    "Put samplers on one run, or models of different families on one data set: pictures, cost, numbers.\n\n"
    "One run: several samplers draw from it. Several runs, or --models to train under one budget: a row each, with a floor "
    "and controls that every model must beat."
)


def command() -> Any:
    """The `compare` command."""
    return build("compare", _HELP, _FLAGS, run)


def _samplers(incomplete: str) -> list[str]:
    return [name for name in registry.entries("samplers") if name.startswith(incomplete)]


def _metrics(incomplete: str) -> list[str]:
    return [name for name in registry.entries("metrics") if name.startswith(incomplete)]


_FLAGS = [
    Flag(
        "runs", (), list[str], "one run for samplers, several for families", metavar="RUN", complete=guiding.run_names
    ),
    Flag(
        "samplers",
        ("--samplers",),
        str,
        "names, comma-separated; all = every one that can draw from the model",
        "Samplers",
        shown=",".join(DEFAULT),
        metavar="A,B,…",
        complete=_samplers,
    ),
    Flag("steps", ("--steps",), str, "numbers of steps", "Samplers", shown=",".join(map(str, STEPS)), metavar="N,N,…"),
    Flag("n", ("-n", "--number"), int, "samples of each", "What", shown="min(reference, 256); of families 2,048"),
    Flag("seed", ("--seed",), int, "seed of the first; the same for all", "What", shown="0"),
    Flag(
        "metric",
        ("--metric",),
        str,
        "what is measured against the test split",
        "Samplers",
        shown="fid; of points wasserstein",
        complete=_metrics,
    ),
    *families.FLAGS,
    *guiding.FLAGS,
    Flag("out", ("--out",), str, "folder; what is in it is not computed again", "Output"),
    Flag("batch", ("--batch-size",), int, "samples computed together", "Compute", shown="64"),
]


def run(values: dict[str, Any]) -> None:
    """Compare, print, and write."""
    if families.wanted(values):
        return families.run(values)
    for key in families.ONLY_TRAINING:
        if key in values:
            raise GencliError(f"--{key.replace('_', '-')} is for --models", "name models, such as --models ddpm,vae")
    from gencli.evaluation.compare import Ledger, compare, sheet
    from gencli.report.kinds._pictures import save_picture

    names, steps = parse_samplers(values.get("samplers")), parse_steps(values.get("steps"))
    bench = _bench(values, _found(values, names))
    plan = bench.planned(names or _default(bench, everything=names == []), steps)
    _check(plan)
    ledger = Ledger(_folder(values, bench, steps), bench.facts())
    console.say(f"run {bench.run.name} · {bench.plan.n} samples a cell · {ledger.folder}")
    ahead = _ahead(bench, plan, ledger)
    done: list[Cell] = []
    try:
        with console.task("comparing", sum(ahead.values()), "steps") as task:

            def watch(cell: Cell, at: int) -> None:
                before = list(ahead)[: list(ahead).index(cell.label)]
                task.advance(sum(ahead[label] for label in before) + at, cell.label)

            done += compare(bench, plan, ledger, watch)
    except KeyboardInterrupt:
        console.say(f"stopped; what is done is kept: gencli {_again(ledger.folder)}")
        raise
    drawn = sheet(ledger, f"{bench.run.name} · {bench.plan.n} samples a cell")
    if drawn is not None:
        save_picture(ledger.folder / "grid.png", drawn)
    _print(bench, done, ledger)


def parse_samplers(text: str | None) -> list[str] | None:
    """Names of samplers; none of them = all that fit, None = a few."""
    if text is None:
        return None
    if text.strip() == "all":
        return []
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise GencliError("--samplers names none", "give names such as ddim,heun, or all")
    return list(dict.fromkeys(registry.entry("samplers", name).name for name in names))


def parse_steps(text: str | None) -> list[int]:
    """`10,20,50`."""
    parts = [part.strip() for part in text.split(",")] if text is not None else list(map(str, STEPS))
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise GencliError(f"--steps is '{text}'", "give whole numbers of 1 or more, such as 10,20,50")
    return list(dict.fromkeys(map(int, parts)))


def _found(values: dict[str, Any], names: Sequence[str] | None) -> runs.Found:
    given = values.get("runs", [])
    if len(given) > 1:
        raise GencliError(f"compare puts samplers on one run, got {len(given)}: {', '.join(given)}", "give one of them")
    if given:
        return runs.named(given[0])
    fits = registry.load("samplers", (names or DEFAULT)[0]).fits
    found = runs.newest(lambda run: (model := registry.attempt("models", run.model)) is not None and fits(model))
    if found is None:
        raise GencliError(f"no checkpoint yet to compare on; looked in {runs.places()}", "train one: gencli train ddpm")
    return found


def _bench(values: dict[str, Any], found: runs.Found) -> Bench:
    from gencli import device
    from gencli.bundle import Run
    from gencli.config import choose
    from gencli.data import open_table
    from gencli.evaluation import evaluate
    from gencli.evaluation.compare import Bench
    from gencli.metrics._features import extractor

    for flag, key in (("-n", "n"), ("--batch-size", "batch")):
        if values.get(key, 1) < 1:
            raise GencliError(f"{flag} is {values[key]}", "give 1 or more")
    if values.get("seed", 0) < 0:
        raise GencliError(f"--seed is {values['seed']}", "give 0 or more")
    loaded = Run.load(found.path, device.default())
    loaded.sampler()  # a run that cannot be sampled at all says so
    data = open_table(found.config["recipe"]["data"])
    if not len(data.split("test")):
        raise GencliError(f"data set '{data.name}' has no test items to compare with", "compare a run of other data")
    metric = values.get("metric", "wasserstein" if data.kind == "points" else "fid")
    of_samples, of_models = evaluate.split_metrics([choose("metrics", metric)])
    if of_models:
        raise GencliError(f"metric '{metric}' measures a model, not samples", "use fid")
    by = extractor("points" if data.kind == "points" else "gencli", device=device.default())
    guidance = guiding.guidance_of(values, loaded)
    return Bench(
        loaded, data, of_samples, by, values.get("n"), values.get("seed", 0), guidance, values.get("batch", 64)
    )


def _default(bench: Bench, everything: bool) -> list[str]:
    """Samplers whose interface the model offers: the usual ones among them, or all."""
    model = type(bench.run.model)
    known = {name: registry.load("samplers", name) for name in registry.entries("samplers")}
    fitting = [name for name, sampler in known.items() if sampler.fits(model) and not sampler.takes]
    usual = [name for name in DEFAULT if name in fitting]
    return fitting if everything or not usual else usual


def _check(plan: Sequence[Planned]) -> None:
    if not any(planned.sampler for planned in plan):
        cell = plan[0].cell
        raise GencliError(f"no sampler to compare: {cell.sampler} {cell.reason}: {cell.why}", "try --samplers all")


def _folder(values: dict[str, Any], bench: Bench, steps: Sequence[int]) -> Path:
    from gencli.training.session import make_folder

    if "out" in values:
        return Path(values["out"])
    name = f"compare-{'-'.join(map(str, steps))}-{values.get('seed', 0)}"
    return make_folder(Path("samples") / bench.run.name, name)


def _ahead(bench: Bench, plan: Sequence[Planned], ledger: Ledger) -> dict[str, int]:
    """Steps of every cell that is not measured yet, and a line about them."""
    open_ = [planned for planned in plan if planned.sampler and ledger.find(planned.cell) is None]
    batches = -(-bench.plan.n // min(bench.plan.batch, bench.plan.n))
    calls = round(sum(planned.cell.evaluations for planned in open_) * batches)
    known = sum(ledger.find(planned.cell) is not None for planned in plan)
    there = f" · {known} are there" if known else ""
    console.say(f"{len(open_)} cells{there} · {calls} network evaluations · features {bench.by.name}")
    return {planned.cell.label: bench.steps_of(planned) for planned in open_}


def _again(folder: Path) -> str:
    args = list(console.state.args)
    if "--out" in args:
        del args[args.index("--out") : args.index("--out") + 2]
    return shlex.join(["compare", *(a for a in args if not a.startswith("--out=")), "--out", str(folder)])


def _print(bench: Bench, done: Sequence[Cell], ledger: Ledger) -> None:
    names = list(dict.fromkeys(value["metric"] for cell in done for value in cell.values))
    rows = []
    for cell in done:
        values = {value["metric"]: value for value in cell.values}
        numbers = [f"{values[name]['value']:.4g}" if name in values else "" for name in names]
        low, high = (next(iter(values.values()))["interval"] or (None, None)) if values else (None, None)
        cost = [f"{cell.evaluations:g}", f"{cell.seconds:.3g}"] if values else ["", ""]
        interval = "" if low is None else f"{low:.4g} – {high:.4g}"
        note = f"{cell.reason}: {cell.why}" if cell.reason else ""
        rows.append([cell.sampler, "" if cell.steps is None else cell.steps, *cost, *numbers, interval, note])
    console.table(rows, ["sampler", "steps", "evaluations", "seconds", *names, "95 % interval", "note"])
    for note in dict.fromkeys(value["note"] for cell in done for value in cell.values if value["note"]):
        console.say(f"note: {note}")
    console.document(run=bench.run.name, n=bench.plan.n, cells=[asdict(cell) for cell in done])
    if console.state.quiet or console.state.json:
        console.result(ledger.folder)
    console.say(f"{ledger.folder}")
    console.following(_best(done, bench.run.name))


def _best(done: Sequence[Cell], run: str) -> str:
    """The command that draws with the best of them."""
    numbers = [cell for cell in done if cell.value is not None]
    if not numbers:
        return f"gencli sample {run}"
    pick = min if numbers[0].values[0]["better"] == "lower" else max
    best = pick(numbers, key=lambda cell: cell.value or 0.0)
    steps = "" if best.steps is None else f" --steps {best.steps}"
    return f"gencli sample {best.sampler} -c {run}{steps}"
