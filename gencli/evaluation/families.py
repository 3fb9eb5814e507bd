"""Models of different families on one data set: the same samples, the same reference, one row each, with floor and controls.

An `Entry` is a model to be trained, or a chain of them (`vqvae+gated-pixelcnn`). A `Contest` is what all rows have in common:
the reference, the number of samples, the metrics, one pass of features. Rows are kept in a `Book`.

The floor is the metrics between two halves of the real data; every model must beat both controls.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gencli import registry, runs
from gencli.bundle import Run, read_config
from gencli.config import as_dict, choose
from gencli.core import Likelihood
from gencli.data import open_table, table_of
from gencli.data._base import Data
from gencli.errors import GencliError
from gencli.evaluation import budget, evaluate
from gencli.evaluation.book import Row
from gencli.evaluation.controls import CONTROLS, real_items
from gencli.evaluation.generate import cost_of_one, generate, spent
from gencli.metrics._features import Extractor
from gencli.training import memory

METRICS = {"image": ("fid", "precision-recall"), "points": ("wasserstein",)}
FEW, BITS_SECONDS = 16, 60.0  # items whose likelihood is timed; what all of them may take
SHOWN = 64  # samples drawn once more, to time them and to show them


@dataclass(frozen=True)
class Entry:
    """A model to be trained: resolved recipes, each on the latents of the one before.

    Args:
        name: as asked for.
        stages: resolved tables.
    """

    name: str
    stages: tuple[dict[str, Any], ...]


# ------------------------------------------------------------------------------------------------------------- what is compared


def entries(names: str, data: str, image_size: str | None = None) -> list[Entry]:
    """`ddpm,vqvae+gated-pixelcnn` as entries, all of them on the same data at the same size.

    Raises:
        GencliError: a name that nothing has, or a chain that does not begin with an autoencoder or ends in no model that draws.
    """
    asked = [part.strip() for part in names.split(",") if part.strip()]
    if not asked:
        raise GencliError("--models names none", "give names such as ddpm,vqvae+gated-pixelcnn,vae")
    return list({entry.name: entry for entry in (_entry(one, data, image_size) for one in asked)}.values())


def _entry(text: str, data: str, image_size: str | None) -> Entry:
    parts = [part.strip() for part in text.split("+")]
    over = {"data": whole_table(data, image_size)}
    stages = [budget.tables_for(part, data, over) for part in parts]
    for tables in stages[1:]:
        tables["data"] = stages[0]["data"]
        tables.pop("codecs", None)
    names = [tables["model"]["name"] for tables in stages]
    for name in names[:-1]:
        if "encode" not in registry.entry("models", name).offers:
            raise GencliError(
                f"'{name}' in '{text}' cannot be a codec: it does not encode",
                "begin a chain with an autoencoder, such as vqvae+gated-pixelcnn",
            )
    if "sample" not in registry.entry("models", names[-1]).offers:
        prior = f"give it a prior: {names[-1]}+gated-pixelcnn"
        encodes = "encode" in registry.entry("models", names[-1]).offers
        raise GencliError(f"'{text}' draws no samples", prior if encodes else "leave it out")
    called = [Path(part).stem if part.endswith(".toml") else registry.public_name(part) for part in parts]
    return Entry("+".join(called), tuple(stages))


def whole_table(data: str, image_size: str | None = None) -> dict[str, Any]:
    """The `[data]` table of a data set with its size, which every row shares whatever its recipe would have."""
    table = table_of(data)
    config = choose("data", {**table, **({"image_size": image_size} if image_size else {})}).config
    size = as_dict(config).get("image_size")
    return {key: value for key, value in {**table, "image_size": size}.items() if value is not None}


def check_fits(entry: Entry, opened: Callable[[Mapping[str, Any]], Data]) -> None:
    """Refuse an entry that cannot be built for the data, before anything is trained.

    Raises:
        GencliError: with the entry's name and the reason.
    """
    codec: Run | None = None
    try:
        for tables in entry.stages[:-1]:
            codec = Run.build(tables, opened(tables["data"]).spec, codec)
        last = entry.stages[-1]
        memory.blueprint(last, opened(last["data"]).spec, codec)
    except GencliError as error:
        raise GencliError(f"{entry.name} does not fit the data: {error.message}", error.hint) from None


def labelled(table: Mapping[str, Any]) -> dict[str, Any]:
    """A `[data]` table with its labels: what two runs share, one of which leaves the classes out."""
    fields = registry.load("data", table["name"]).Config.__dataclass_fields__
    return {**table, "unconditional": False} if "unconditional" in fields else dict(table)


def same_data(found: Sequence[runs.Found], opened: Callable[[Mapping[str, Any]], Data]) -> Data:
    """The data that all runs were trained on.

    Raises:
        GencliError: two of them differ, or the data are no longer what a run was trained on.
    """
    first: tuple[runs.Found, Data] | None = None
    for run in found:
        table = run.config["recipe"]["data"]
        own = opened(table)
        if own.hash != run.config["data"]["hash"]:
            raise GencliError(
                f"run {run.name} was trained on other data: hash {run.config['data']['hash']}, now {own.hash}",
                "leave it out, or train it again",
            )
        whole = opened(labelled(table))
        first = first or (run, whole)
        if whole.hash != first[1].hash:
            raise GencliError(
                f"{first[0].name} and {run.name} were trained on different data: {_called(first[1])} and {_called(whole)}",
                "compare runs of one data set at one size",
            )
    assert first is not None, "nothing to compare"
    return first[1]


def _called(data: Data) -> str:
    shape = "×".join(map(str, data.spec.x.shape))
    return f"{data.name} {shape} ({data.hash})"


def opener(progress: Callable[[str, int, int], None] | None = None) -> Callable[[Mapping[str, Any]], Data]:
    """Opens data sets by their tables, each once."""
    known: dict[str, Data] = {}

    def opened(table: Mapping[str, Any]) -> Data:
        key = json.dumps(dict(table), sort_keys=True, default=str)
        if key not in known:
            known[key] = open_table(table)
            known[key].progress = progress
        return known[key]

    return opened


def begun(root: Path, tables: Mapping[str, Any]) -> tuple[Path | None, int]:
    """The run below `root` that was begun with a resolved recipe, and the steps it has taken; None without one.

    Raises:
        GencliError: the run of that model there was made otherwise.
    """
    wanted = json.loads(json.dumps(tables))
    for path in sorted(root.glob("*/config.json")):
        config = read_config(path.parent)
        if config["recipe"]["model"]["name"] == wanted["model"]["name"]:
            if config["recipe"] != wanted:
                raise GencliError(f"{path.parent} was trained with other settings", "give another --out")
            return path.parent, int(config["step"])
    return None, 0


# ---------------------------------------------------------------------------------------------------------------- measuring


class Contest:
    """What all rows have in common.

    Args:
        data: whose test split is the reference.
        by: what turns samples into features.
        n: samples of every row; None = min(reference, 2,048).
        seed: of the first.
        batch: samples computed together.
    """

    def __init__(self, data: Data, by: Extractor, n: int | None = None, seed: int = 0, batch: int = 64) -> None:
        if not len(data.split("test")):
            raise GencliError(f"data set '{data.name}' has no test items to compare with", "compare on other data")
        self.data, self.by = data, by
        self.plan = evaluate.Plan(n or evaluate.default_n(data, "test"), "test", seed, batch=batch)
        self.metrics, _ = evaluate.split_metrics([choose("metrics", name) for name in METRICS[data.kind]])
        self._reference: tuple[Any, dict[str, Any]] | None = None

    @property
    def reference(self) -> tuple[Any, dict[str, Any]]:
        """Features of the real items, extracted when they are first asked for, and their receipt."""
        if self._reference is None:
            real, facts = evaluate.reference_of(self.data, self.plan, self.by)
            self._reference = real, {**facts, **evaluate.codec_of(self.data, self.plan), **self.by.facts()}
        return self._reference

    def facts(self) -> dict[str, Any]:
        """What decides the numbers of all rows."""
        return {
            "compares": "families",
            "data": self.data.name,
            "data_hash": self.data.hash,
            "split": "test",
            "n": self.plan.n,
            "seed": self.plan.seed,
            "batch": self.plan.batch,
            "features": self.by.name,
            "features_fingerprint": self.by.fingerprint,
            "metrics": [{"name": name, **as_dict(metric.config)} for name, metric in self.metrics],
        }

    def request(self, run: Run) -> Any:
        """The samples of a row."""
        return evaluate.request_of(run, self.plan)

    def measured(
        self, row: Row, run: Run, own: Data, logs: Sequence[Path], watch: Callable[[int], None] | None = None
    ) -> tuple[Row, Tensor]:
        """The row with its numbers, and samples to show.

        Args:
            row: its name and folder.
            run: loaded.
            own: the data as the run was trained on them, with or without labels.
            logs: folders of all training behind it.
            watch: told the steps of sampling that are done.
        """
        real, facts = self.reference
        request = self.request(run)
        fake, made = evaluate.features_of_run(run, self.by, request, watch)
        results = evaluate.compare(self.metrics, real, fake, {**made, **facts})
        seconds, calls, shown = timed(run, request)
        bits, notes = self._bits(run, own)
        costs = [
            (budget.spent_by(rows), rows[-1]["step"], budget.still_falling(rows))
            for rows in map(budget.rows_of, logs)
            if rows
        ]
        known = len(costs) == len(logs) > 0
        falls = [fall for _, _, fall in costs if fall is not None]
        done = replace(
            row,
            weights=run.weights_hash(),
            parameters=sum(one.config["parameters"] for one in all_runs(run)),
            train_seconds=round(sum(took or 0.0 for took, _, _ in costs), 1) if known else None,
            train_steps=sum(steps for _, steps, _ in costs) if known else run.step,
            falling=max(falls, default=None),
            sample_seconds=seconds,
            evaluations=calls,
            sampler=request.sampler.public_name(),
            values=tuple(result.row() for result in [*results, *bits]),
            notes=(*row.notes, *notes),
        )
        return done, shown

    def _bits(self, run: Run, own: Data) -> tuple[list[Any], tuple[str, ...]]:
        """Bits per dimension of held-out items where the model tells them, and a line where they are of fewer, or of none.

        A few items tell how many can be asked for: the likelihood of some models is an integral a minute long.
        """
        if not isinstance(run.model, Likelihood):
            return [], ()
        metric, whole = choose("metrics", "bpd").build(), min(self.plan.n, len(own.split("test")))
        try:
            began = time.perf_counter()
            made = evaluate.measure([("bpd", metric)], run, own, replace(self.plan, n=FEW))
            can = int(BITS_SECONDS * FEW / (time.perf_counter() - began))
            if can > FEW:
                made = evaluate.measure([("bpd", metric)], run, own, replace(self.plan, n=min(whole, can)))
        except GencliError as error:
            return [], (f"no bits/dim: {error.message}",)
        asked = made[0].value.n
        return made, () if asked == whole else (f"bits/dim of {asked} items in about {BITS_SECONDS:g} s",)

    def floor(self) -> tuple[Row, Tensor]:
        """The real data against themselves."""
        real, facts = self.reference
        results = evaluate.floor(self.metrics, real, facts)
        return Row("real data", "floor", values=tuple(r.row() for r in results)), real_items(self.data, SHOWN)

    def control(self, name: str) -> tuple[Row, Tensor]:
        """A row that every model must beat."""
        real, facts = self.reference
        items = CONTROLS[name](self.data, self.plan.n, self.plan.seed)
        fake = self.by.extract(items.split(self.plan.batch))
        results = evaluate.compare(self.metrics, real, fake, {**facts, "samples": name})
        return Row(name, "control", values=tuple(r.row() for r in results)), items[:SHOWN]


def all_runs(run: Run) -> list[Run]:
    """A run and every run inside it."""
    inner = [*(codec.run for codec in run.codecs if hasattr(codec, "run")), *run.sources.values()]
    return [run, *(deeper for one in inner for deeper in all_runs(one))]


def timed(run: Run, request: Any) -> tuple[float, float, Tensor]:
    """Seconds and network evaluations of one image, of the request's first micro-batch drawn again; and those images."""
    count = min(SHOWN, len(request.seeds))
    cond = {key: value[:count] for key, value in request.cond.items()}
    part = replace(request, seeds=list(request.seeds[:count]), cond=cond, micro=min(request.micro, count))
    began = time.perf_counter()
    done = [progress for progress in generate(run, part) if progress.chunk is not None]
    seconds = (time.perf_counter() - began) / count
    calls = float(cost_of_one(run, part)[1])
    if taken := spent(done):
        calls *= taken["mean"] / part.sampler.evaluations(run.model, run.spec)
    return seconds, round(calls, 1), torch.cat([progress.chunk for progress in done if progress.chunk is not None])
