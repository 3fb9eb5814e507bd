"""`gencli compare RUN RUN…` and `gencli compare --models A,B --data D --budget T`: families of models on one data set."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gencli import runs
from gencli.cli import console, ranking, train
from gencli.cli.options import Flag
from gencli.errors import GencliError

if TYPE_CHECKING:
    from gencli.data._base import Data
    from gencli.evaluation.book import Book, Row
    from gencli.evaluation.budget import Budget
    from gencli.evaluation.families import Contest, Entry

BUDGET = "10m"
NOT_HERE = ("samplers", "steps", "metric")  # of a comparison of samplers
ONLY_TRAINING = ("data", "budget", "image_size")
FLAGS = [
    Flag("models", ("--models",), str, "train these and compare them: ddpm,vqvae+gated-pixelcnn,vae", "Families"),
    Flag("data", ("--data",), str, "what they are trained on", "Families", complete=train._data_names),
    Flag("budget", ("--budget",), str, "training of each: 600s, 10m, 1h, or 2e15FLOP", "Families", shown=BUDGET),
    Flag("image_size", ("--image-size",), str, "side in pixels, the same for all", "Families", shown="the data's"),
]


def wanted(values: Mapping[str, Any]) -> bool:
    """Whether the flags ask for families and not for samplers."""
    return "models" in values or (len(values.get("runs", [])) > 1 and "samplers" not in values)


def run(values: dict[str, Any]) -> None:
    """Train what is missing, measure what is missing, print and draw all."""
    _check(values)
    try:
        rows, book = (_of_models if "models" in values else _of_runs)(values)
    except KeyboardInterrupt:
        console.say(f"stopped; what is done is kept: gencli {_again()}")
        raise
    ranking.show(rows, book, f"gencli {_again()}")


class _Relay:
    """Told by data sets and probes how far they are; shows it inside `on`, since one bar at a time can be on a screen."""

    def __init__(self) -> None:
        self._show: Callable[[str, int, int], None] | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        if self._show is not None:
            self._show(what, done, total)

    @contextmanager
    def on(self) -> Iterator[None]:
        """Show what is told."""
        with console.hook() as self._show:
            yield
        self._show = None


def _check(values: Mapping[str, Any]) -> None:
    guides = [key for key in values if key.startswith(("guid", "classifier"))]
    for key in [*NOT_HERE, *guides]:
        if key in values:
            raise GencliError(
                f"--{key.replace('_', '-')} is for samplers on one run; here each model is drawn as its recipe says",
                "leave it out, or name one run",
            )
    if "models" in values and values.get("runs"):
        raise GencliError(
            f"compare takes runs or --models, got both: {', '.join(values['runs'])}", "leave one of them out"
        )
    if "models" in values and "data" not in values:
        raise GencliError("--models needs --data", "name what they are trained on, such as --data fashion-mnist")
    for key in ONLY_TRAINING if "models" not in values else ():
        if key in values:
            flag = "--" + key.replace("_", "-")
            raise GencliError(f"{flag} is for --models; runs have theirs already", f"leave {flag} out")
    for flag, key in (("-n", "n"), ("--batch-size", "batch")):
        if values.get(key, 1) < 1:
            raise GencliError(f"{flag} is {values[key]}", "give 1 or more")
    if values.get("seed", 0) < 0:
        raise GencliError(f"--seed is {values['seed']}", "give 0 or more")


def _contest(values: Mapping[str, Any], data: Data) -> Contest:
    from gencli import device
    from gencli.evaluation.families import METRICS, Contest
    from gencli.metrics._features import extractor

    if data.kind not in METRICS:
        raise GencliError(
            f"data set '{data.name}' is of kind '{data.kind}'", f"families are compared on {' and '.join(METRICS)}"
        )
    by = extractor("points" if data.kind == "points" else "gencli", device=device.default())
    return Contest(data, by, values.get("n"), values.get("seed", 0), values.get("batch", 64))


# ------------------------------------------------------------------------------------------------------------- runs that are


def _of_runs(values: dict[str, Any]) -> tuple[list[Row], Book]:
    from gencli.evaluation.book import Book, Row
    from gencli.evaluation.families import opener, same_data

    found = list({run.path: run for run in map(runs.named, values["runs"])}.values())
    relay = _Relay()
    opened = opener(relay)
    with relay.on():
        contest = _contest(values, same_data(found, opened))
    folder = Path(values.get("out", Path("comparisons") / f"{contest.data.name}-runs"))
    book = Book(folder, {**contest.facts(), "budget": None})
    console.say(f"{len(found)} runs · {contest.data.name} · {contest.plan.n} samples each · {book.folder}")
    rows = []
    for one in found:
        note = ("training without that of its codec",) if one.config.get("codec") else ()
        row = Row(one.name, run=str(one.path), notes=note)
        rows.append(_row(book, contest, row, one.path, opened(one.config["recipe"]["data"]), [one.path]))
    return [*rows, *_yardsticks(book, contest)], book


# ---------------------------------------------------------------------------------------------------- models to be trained


def _of_models(values: dict[str, Any]) -> tuple[list[Row], Book]:
    from gencli.evaluation import budget, families
    from gencli.evaluation.book import Book

    given = budget.budget_of(values.get("budget", BUDGET))
    data, size = values["data"], values.get("image_size")
    entries = families.entries(values["models"], data, size)
    relay = _Relay()
    opened = families.opener(relay)
    with relay.on():
        for entry in entries:
            families.check_fits(entry, opened)
        contest = _contest(values, opened(families.labelled(families.whole_table(data, size))))
    default = Path("comparisons") / f"{contest.data.name}-{given.amount:g}{given.unit}"
    book = Book(
        Path(values.get("out", default)),
        {**contest.facts(), "budget": given.amount if given.unit == "s" else str(given)},
    )
    for note in contest.data.notes:
        console.say(note)
    missing = [entry for entry in entries if book.find(entry.name) is None]
    what = f"{len(entries)} models" if len(entries) > 1 else "1 model"
    todo = f"{len(missing)} to train for {_in_words(given)} each"
    console.say(f"{what} · {todo} · {contest.data.name} · {contest.plan.n} samples each · {book.folder}")
    job = _Job(book, contest, given, opened, relay)
    failed = job.buy_first(missing)
    rows = [book.find(entry.name) or failed.get(entry.name) or job.row(entry) for entry in entries]
    return [*rows, *_yardsticks(book, contest)], book


@dataclass(frozen=True)
class _Job:
    """Training within a budget, in the folder of a comparison."""

    book: Book
    contest: Contest
    budget: Budget
    opened: Callable[[Mapping[str, Any]], Data]
    relay: _Relay

    def buy_first(self, missing: Sequence[Entry]) -> dict[str, Row]:
        """Find the steps of every first stage before anything is trained, so that a small budget is refused at once."""
        from gencli.evaluation.book import Row
        from gencli.evaluation.budget import TooSmall

        failed = {}
        for entry in missing:
            try:
                self.bought(entry, 0, None)
            except TooSmall:
                raise
            except GencliError as error:
                failed[entry.name] = _failed(self.book, Row(entry.name), error)
        return failed

    def bought(self, entry: Entry, stage: int, codec_run: Any) -> dict[str, Any]:
        """The tables of a stage with the steps that its part of the budget holds, found once."""
        from gencli.evaluation import budget
        from gencli.training import plan

        tables, count = entry.stages[stage], len(entry.stages)
        digest = hashlib.sha256(json.dumps(tables, sort_keys=True, default=str).encode()).hexdigest()[:16]
        steps = self.book.bought(entry.name, stage, digest)
        if steps is None:
            part = self.budget / count
            what = tables["recipe"] if count == 1 else f"{tables['recipe']} in {entry.name}"
            data = self.opened(tables["data"])
            with self.relay.on():
                if part.unit == "FLOP":
                    flop, step = plan.work(tables, data, codec_run)
                    steps = budget.steps_of_work(flop, part.amount, what, count)
                else:
                    found = budget.probe(tables, data, codec_run, self.relay)
                    step, steps = found.time.step, budget.steps_within(found, part.amount, what, count)
            self.book.buy(entry.name, stage, digest, steps, step)
            console.say(f"{what}: {steps:,} steps of {1000 * step:.3g} ms in {_in_words(part)}")
        return budget.with_steps(tables, steps)

    def row(self, entry: Entry) -> Row:
        """Train what is missing of an entry and measure it; one that fails says why."""
        from gencli.bundle import Run
        from gencli.evaluation.book import Row

        folders: list[Path] = []
        root = self.book.folder / "runs" / Row(entry.name).slug
        try:
            for stage in range(len(entry.stages)):
                codec_run = Run.load(folders[-1]) if folders else None
                tables = self.bought(entry, stage, codec_run)
                folders.append(_train(tables, self.opened(tables["data"]), root, codec_run))
        except GencliError as error:
            return _failed(self.book, Row(entry.name), error)
        row = Row(entry.name, run=str(folders[-1]))
        own = self.opened(entry.stages[-1]["data"])
        return _row(self.book, self.contest, row, folders[-1], own, folders)


def _in_words(budget: Budget) -> str:
    return console.clock(budget.amount) if budget.unit == "s" else str(budget)


def _train(tables: dict[str, Any], data: Data, root: Path, codec_run: Any) -> Path:
    """The folder of the finished run: it is there, or it is resumed, or begun."""
    from gencli.evaluation.families import begun
    from gencli.training.session import Session

    folder, step = begun(root, tables)
    if folder is not None and step >= tables["train"]["steps"]:
        return folder
    session = Session(tables, data, root, None, codec_run, folder)
    total = session.train.steps
    console.say(f"run {session.folder} · {session.config['parameters']:,} parameters · {total:,} steps")
    with train._signals(session), console.task(f"training {tables['recipe']}", total, "steps", step) as task:
        for event in session.events():
            if event.kind == "note":
                console.say(event.text)
            elif event.kind == "step":
                task.advance(event.step, "  ".join(f"{key} {value:.4g}" for key, value in event.values.items()))
    if session.stop:
        console.say(f"stopped at step {event.step}; what is done is kept: gencli {_again()}")
        raise typer.Exit(128 + session.stop)
    return session.folder


# --------------------------------------------------------------------------------------------------------------- measuring


def _row(book: Book, contest: Contest, row: Row, folder: Path, own: Data, logs: Sequence[Path]) -> Row:
    """The row with its numbers: those that are kept, or new ones; one that fails says why."""
    from gencli import device
    from gencli.bundle import Run
    from gencli.report.kinds import writer

    try:
        run = Run.load(folder, device.default())
        known = book.find(row.name, run.weights_hash())
        if known is not None:
            return known
        request = contest.request(run)
    except GencliError as error:
        if book.find(row.name) is not None:
            raise
        return _failed(book, row, error)
    try:
        with console.task(f"sampling {row.name}", _announced(contest, run, request), "steps") as task:
            made, shown = contest.measured(row, run, own, logs, task.advance)
    except GencliError as error:
        return _failed(book, row, error)
    kind = writer(contest.data.kind)
    book.add(made, kind.grid(shown) if contest.data.kind == "image" else kind.panel(shown, _real(contest)))
    return made


def _announced(contest: Contest, run: Any, request: Any) -> int:
    """The steps of sampling that are ahead, said with their network evaluations."""
    from gencli.evaluation import evaluate
    from gencli.evaluation.generate import cost

    todo = evaluate.outstanding(run, contest.by, request)
    steps, calls = cost(run, todo) if todo is not None else (0, 0)
    console.say(f"{run.name}: {contest.plan.n} samples · {calls} network evaluations · features {contest.by.name}")
    return steps


def _real(contest: Contest) -> Any:
    from gencli.evaluation.controls import real_items

    return real_items(contest.data, 1024)


def _yardsticks(book: Book, contest: Contest) -> list[Row]:
    """The floor and the controls."""
    from gencli.evaluation.controls import CONTROLS
    from gencli.report.kinds import writer

    kind, rows = writer(contest.data.kind), []
    for name in ["real data", *CONTROLS]:
        row = book.find(name)
        if row is None:
            row, items = contest.floor() if name == "real data" else contest.control(name)
            book.add(row, kind.grid(items) if contest.data.kind == "image" else kind.panel(items, _real(contest)))
        rows.append(row)
    return rows


def _failed(book: Book, row: Row, error: GencliError) -> Row:
    """A row without numbers; it is tried again by the next call."""
    made = replace(row, why=error.message)
    book.add(made)
    console.say(f"{row.name} failed: {error.message}; the rest go on")
    return made


def _again() -> str:
    return shlex.join(["compare", *console.state.args])
