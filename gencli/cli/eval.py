"""`gencli eval METRIC…`: numbers with their receipts; several metrics share one set of samples and features."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gencli import registry, runs
from gencli.cli import console, guiding, singly
from gencli.cli.options import Flag, build, flag_of, nested
from gencli.cli.results import Measured, show
from gencli.config import choose, settings
from gencli.errors import GencliError

PROTOCOLS = ("clean", "legacy-tf", "legacy-pytorch", "adm", "edm")


def command() -> Any:
    """The `eval` command, with the settings of the metrics named in the arguments."""
    extra = []
    for name in console.state.args:
        if registry.public_name(name) in registry.entries("metrics") and "--help" not in console.state.args[:1]:
            rows = settings(registry.load("metrics", name).Config)
            key = registry.public_name(name)
            extra += [flag_of(row, f"{key}.{row.path}", f"Metric {key}", f"{key}.{row.path}") for row in rows]
    return build("eval", "Measure samples or a model.", [*_FLAGS, *extra], run)


def _metrics(incomplete: str) -> list[str]:
    return [name for name in registry.entries("metrics") if name.startswith(incomplete)]


_FLAGS = [
    Flag("metrics", (), list[str], "one or more metrics", metavar="METRIC", complete=_metrics),
    Flag(
        "checkpoint",
        ("--checkpoint", "-c"),
        list[str],
        "a run; of two or more, how likely the first is better",
        "What",
        shown="the newest that fits",
        complete=guiding.run_names,
    ),
    Flag(
        "samples",
        ("--samples",),
        list[str],
        "folder or zip of images, or .npz; repeated, the parts of one set",
        "What",
        metavar="PATH",
    ),
    Flag("data", ("--data",), str, "the reference, also an .npz", "What", shown="the run's own"),
    Flag("split", ("--split",), str, "train or test items as the reference", "What", shown="test"),
    Flag("n", ("-n", "--number"), int, "samples", "What", shown="min(reference, 2048)"),
    Flag("floor", ("--floor",), bool, "also between two halves of the real data", "What", default=False),
    Flag(
        "features",
        ("--features",),
        str,
        "gencli, inception, dinov2, clip, random, pixels, or a path",
        "Features",
        shown="gencli",
    ),
    Flag(
        "protocol",
        ("--protocol",),
        str,
        "whose FID: resize, N and split of Inception",
        "Features",
        shown="clean",
        metavar="clean|legacy-tf|legacy-pytorch|adm|edm",
        complete=lambda incomplete: [name for name in PROTOCOLS if name.startswith(incomplete)],
    ),
    Flag("weights", ("--weights",), str, "file with the Inception weights", "Features"),
    Flag("fetch", ("--fetch",), bool, "fetch missing Inception weights from the network", "Features", default=False),
    Flag("force", ("--force",), bool, "Inception with fewer than 2,048 items", "Features", default=False),
    Flag("explain", ("--explain",), bool, "show the receipt: all that made the number", "Trust", default=False),
    Flag("anyway", ("--anyway",), bool, "compare what was measured differently", "Trust", default=False),
    Flag("seed", ("--seed",), int, "seed of the first sample", "Sampling", shown="0"),
    Flag("sampler", ("--sampler",), str, "sampler", "Sampling", shown="the run's own"),
    Flag("steps", ("--steps",), int, "steps of the sampler", "Sampling", shown="the sampler's own"),
    Flag("batch", ("--batch-size",), int, "samples computed together", "Sampling", shown="64"),
    *guiding.FLAGS,
]


def run(values: dict[str, Any]) -> None:
    """Evaluate and print."""
    names = [registry.entry("metrics", name).name for name in values.get("metrics", [])]
    if not names:
        raise GencliError("`gencli eval` needs a metric", f"one or more of {', '.join(registry.entries('metrics'))}")
    from gencli.core import world
    from gencli.evaluation import evaluate, items

    given = nested({key: value for key, value in values.items() if key.split(".")[0] in names and "." in key})
    parts = [choose("metrics", {"name": name, **given.get(name, {})}) for name in dict.fromkeys(names)]
    of_samples, of_models = evaluate.split_metrics(parts)
    of_items = items.metrics_of(parts)
    no_run = "samples" in values and "checkpoint" not in values
    targets = [] if no_run else _targets(values, of_samples, of_models, of_items)
    if "samples" in values and (of_models or of_items):
        raise GencliError(
            f"metric '{[*of_models, *of_items][0][0]}' measures a model, --samples gives images only",
            "name a run with -c alone",
        )
    reference = _References(values)
    if len(targets) > 1 and not values["anyway"]:
        reference.check_alike(targets)
    sets: list[Measured] = []
    if "samples" in values and world().main:
        sets.append(_files(values, reference.of(targets[0] if targets else None), of_samples))
    sets += [_one(values, found, reference.of(found), of_samples, of_models, of_items) for found in targets]
    if world().main:
        show(sets, values["explain"], values["anyway"])


class _References:
    """Data sets by their tables, each opened once."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values
        self._opened: dict[str, Any] = {}

    def of(self, found: runs.Found | None) -> Any:
        """The reference for a run, or for files alone."""
        from gencli.core import main_first

        own = found.config["recipe"]["data"] if found else None
        if own is None and "data" not in self.values:
            raise GencliError(
                "--samples needs --data, the reference to compare with", "gencli eval fid --samples DIR --data digits"
            )
        key = json.dumps(own, sort_keys=True, default=str)
        if key not in self._opened:
            with main_first():
                self._opened[key] = _data(self.values, own or {})
        return self._opened[key]

    def check_alike(self, targets: Sequence[runs.Found]) -> None:
        """Refuse runs with different references before anything is drawn."""
        first = self.of(targets[0])
        for found in targets[1:]:
            data = self.of(found)
            if data.hash != first.hash:
                raise GencliError(
                    f"{targets[0].name} and {found.name} have different references: "
                    f"{first.name} ({first.hash}) and {data.name} ({data.hash})",
                    "name one with --data, or add --anyway",
                )


def _targets(
    values: dict[str, Any], of_samples: Sequence[Any], of_models: Sequence[Any], of_items: Sequence[Any]
) -> list[runs.Found]:
    from gencli.evaluation import items

    if "checkpoint" in values:
        return [runs.named(name) for name in values["checkpoint"]]
    needs = [metric.needs for _, metric in of_models]
    sampled = bool(of_samples) or items.draws(of_items)
    found = runs.newest(
        lambda r: (
            (model := registry.attempt("models", r.model)) is not None
            and _fits(model, sampled, needs)
            and items.fits(of_items, model)
        )
    )
    if found is None:
        raise GencliError(
            f"no checkpoint yet that these metrics can measure; looked in {runs.places()}",
            "train one: gencli train ddpm",
        )
    return [found]


def _fits(model: Any, sampled: bool, needs: Sequence[Any]) -> bool:
    samplers = [s for name in registry.entries("samplers") if (s := registry.attempt("samplers", name)) is not None]
    wanted = [[n for n, v in vars(need).items() if callable(v) and not n.startswith("_")] for need in needs]
    return (not sampled or any(s.fits(model) for s in samplers)) and all(
        hasattr(model, n) for names in wanted for n in names
    )


def _data(values: dict[str, Any], own: dict[str, Any]) -> Any:
    from gencli.config import merge
    from gencli.data import open_table, table_of

    if values.get("data", "").endswith(".npz"):
        from gencli.evaluation.references import Reference

        data: Any = Reference(Path(values["data"]).expanduser())
    else:
        data = open_table(merge(own, table_of(values["data"])) if "data" in values else own)
    split = _split(values)
    if split not in ("train", "test"):
        raise registry.unknown("split", split, ("train", "test"), "gencli eval --help")
    if not len(data.split(split)):
        raise GencliError(f"data set '{data.name}' has no {split} items", "give --split train")
    return data


def _protocol(values: dict[str, Any]) -> Any:
    """The convention that was asked for, None without."""
    from gencli.metrics._protocols import named

    if "protocol" not in values:
        return None
    if values.get("features", "inception") != "inception":
        raise GencliError(
            f"--protocol {values['protocol']} is about Inception, not features {values['features']}",
            "leave one of them out",
        )
    return named(values["protocol"])


def _split(values: dict[str, Any]) -> str:
    protocol = _protocol(values)
    return str(values.get("split") or (protocol and protocol.split) or "test")


def _extractor(values: dict[str, Any], kind: str) -> Any:
    from gencli import device
    from gencli.metrics._features import extractor

    default = "inception" if "protocol" in values else "gencli" if kind == "image" else "points"
    weights = Path(values["weights"]) if "weights" in values else None
    name = values.get("features", default)
    return extractor(name, weights, values["fetch"], device.default(), values.get("protocol", "clean"))


def _plan(values: dict[str, Any], data: Any, loaded: Any) -> Any:
    from gencli.evaluation.evaluate import Plan, default_n

    split, protocol = _split(values), _protocol(values)
    n: int = values["n"] if "n" in values else (protocol and protocol.n) or default_n(data, split)
    for flag, value in (("-n", n), ("--batch-size", values.get("batch", 64))):
        if value < 1:
            raise GencliError(f"{flag} is {value}", "give 1 or more")
    steps = {"steps": values["steps"]} if "steps" in values else {}
    sampler = loaded.sampler(values.get("sampler"), steps) if loaded and (steps or "sampler" in values) else None
    guidance = guiding.guidance_of(values, loaded) if loaded else None
    whole = protocol is not None and protocol.split is not None
    return Plan(n, split, values.get("seed", 0), sampler, guidance, values.get("batch", 64), whole)


def _one(
    values: dict[str, Any],
    found: runs.Found,
    data: Any,
    of_samples: Sequence[Any],
    of_models: Sequence[Any],
    of_items: Sequence[Any],
) -> Measured:
    from gencli import device
    from gencli.bundle import Run
    from gencli.core import world
    from gencli.evaluation import evaluate, items

    loaded = Run.load(found.path, device.default())
    evaluate.check_kinds(of_samples, data)
    plan = _plan(values, data, loaded)
    if not world().main:
        for _ in range(bool(of_samples) + items.draws(of_items)):
            evaluate.assist(loaded, evaluate.request_of(loaded, plan))
        return Measured(found.name, [])
    _warn(plan, data, found)
    made = Measured(found.name, [], config=found.config)
    if of_samples:
        by = _extractor(values, data.kind)
        evaluate.check_number(by, plan.n, len(data.split(plan.split)), values["force"])
        real, facts = evaluate.reference_of(data, plan, by)
        evaluate.foresee(of_samples, real, plan.n)
        request = evaluate.request_of(loaded, plan)
        todo = evaluate.outstanding(loaded, by, request)
        with console.task("sampling", _announced(found.name, loaded, request, todo, by), "steps") as task:
            fake, receipt = evaluate.features_of_run(loaded, by, request, task.advance)
        made.results += _compared(
            values, of_samples, plan, real, fake, {**receipt, **_reference(facts, data, plan)}, by
        )
        made.floor = _floor(values, of_samples, real, {**by.facts(), **_reference(facts, data, plan)})
    if of_models:
        console.say(f"checkpoint {found.name} · {min(plan.n, len(data.split(plan.split)))} {plan.split} items")
        made.results += evaluate.measure(of_models, loaded, data, plan)
    if of_items:
        made.results += singly.measure(of_items, found, loaded, data, _extractor(values, data.kind), plan)
    stored = evaluate.store(made.results, loaded, not found.shipped)
    console.say(f"receipts: {stored}")
    return made


def _announced(name: str, loaded: Any, request: Any, todo: Any, by: Any) -> int:
    """The steps to go, said with what is drawn and what comes from the cache."""
    from gencli.evaluation.generate import cost

    steps, calls = cost(loaded, todo) if todo is not None else (0, 0)
    n, kept = len(request.seeds), len(request.seeds) - (len(todo.seeds) if todo is not None else 0)
    cached = f" · features of {'all' if kept == n else kept} from the cache" if kept else ""
    console.say(f"checkpoint {name} · {n} samples · {calls} network evaluations{cached} · features {by.name}")
    return steps


def _compared(
    values: dict[str, Any], metrics: Sequence[Any], plan: Any, real: Any, fake: Any, receipt: dict[str, Any], by: Any
) -> list[Any]:
    """All metrics, with the protocol's name and where its rules were left in their brackets."""
    from gencli.evaluation import evaluate

    if text := evaluate.few(len(fake), real):
        console.say(f"note: {text}")
    protocol = _protocol(values)
    if protocol is not None:
        rounding = receipt["rounding"] if receipt["rounding"] != "unknown" else ""
        left = protocol.deviations(len(fake), plan.split, rounding)
        label = "; ".join([by.name, *left])
        real, fake = (replace(features, extractor=label) for features in (real, fake))
        receipt = {**receipt, "protocol": protocol.name, "protocol_left": left}
        for line in left:
            console.say(f"note: --protocol {protocol.name} is left: {line}")
    return evaluate.compare(metrics, real, fake, receipt)


def _floor(values: dict[str, Any], metrics: Sequence[Any], real: Any, receipt: dict[str, Any]) -> list[Any]:
    from gencli.evaluation import evaluate

    return evaluate.floor(metrics, real, receipt) if values["floor"] else []


def _reference(facts: dict[str, Any], data: Any, plan: Any) -> dict[str, Any]:
    from gencli.evaluation.evaluate import codec_of

    return {**facts, **codec_of(data, plan)}


def _files(values: dict[str, Any], data: Any, of_samples: Sequence[Any]) -> Measured:
    from gencli.evaluation import evaluate
    from gencli.evaluation.references import reference_codecs
    from gencli.evaluation.sources import Samples

    evaluate.check_kinds(of_samples, data)
    by = _extractor(values, data.kind)
    samples = Samples([Path(path).expanduser() for path in values["samples"]])
    plan = _plan({**values, "n": samples.count()}, data, None)
    items = data.split(plan.split)
    evaluate.check_number(by, plan.n, len(items), values["force"])
    fake, receipt = evaluate.features_of_files(samples, by)
    for line in samples.notes(reference_codecs(data, plan.split), tuple(items.x.shape[1:])):
        console.say(f"note: {line}")
    real, facts = evaluate.reference_of(data, plan, by)
    facts = _reference(facts, data, plan)
    return Measured(
        receipt["samples"],
        _compared(values, of_samples, plan, real, fake, {**receipt, **facts}, by),
        _floor(values, of_samples, real, {**by.facts(), **facts}),
    )


def _warn(plan: Any, data: Any, found: runs.Found) -> None:
    if data.hash != found.config["data"]["hash"]:
        console.say(
            f"note: {data.name} is not what {found.name} was trained on (hash {found.config['data']['hash']}, here {data.hash})"
        )
    if plan.split == "train":
        console.say("note: the reference is the training split; memorised images look good")
