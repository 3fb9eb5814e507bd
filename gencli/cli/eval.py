"""`gencli eval METRIC…`: numbers with their receipts; several metrics share one set of samples and features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gencli import registry, runs
from gencli.cli import console, guiding
from gencli.cli.options import Flag, build, flag_of, nested
from gencli.config import choose, settings
from gencli.errors import GencliError


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
        "a run; may be repeated",
        "What",
        shown="the newest that fits",
        complete=guiding.run_names,
    ),
    Flag("samples", ("--samples",), str, "a folder of PNG samples instead of a run", "What"),
    Flag("data", ("--data",), str, "the reference", "What", shown="the run's own"),
    Flag("split", ("--split",), str, "train or test items as the reference", "What", shown="test"),
    Flag("n", ("-n", "--number"), int, "samples", "What", shown="min(reference, 2048)"),
    Flag("features", ("--features",), str, "gencli, inception, random, pixels, or a path", "Features", shown="gencli"),
    Flag("weights", ("--weights",), str, "file with the Inception weights", "Features"),
    Flag("fetch", ("--fetch",), bool, "fetch missing Inception weights from the network", "Features", default=False),
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
    from gencli.evaluation import evaluate

    given = nested({key: value for key, value in values.items() if key.split(".")[0] in names and "." in key})
    parts = [choose("metrics", {"name": name, **given.get(name, {})}) for name in dict.fromkeys(names)]
    of_samples, of_models = evaluate.split_metrics(parts)
    here = world()
    if "samples" in values:
        if of_models:
            raise GencliError(
                f"metric '{of_models[0][0]}' measures a model, --samples gives images only", "name a run with -c"
            )
        if here.main:
            _print(_folder(values, of_samples))
        return
    every = []
    for found in _targets(values, of_samples, of_models):
        results = _one(values, found, of_samples, of_models)
        every += results
    if here.main:
        _print(every)


def _targets(values: dict[str, Any], of_samples: Sequence[Any], of_models: Sequence[Any]) -> list[runs.Found]:
    if "checkpoint" in values:
        return [runs.named(name) for name in values["checkpoint"]]
    needs = [metric.needs for _, metric in of_models]
    found = runs.newest(
        lambda r: (model := registry.attempt("models", r.model)) is not None and _fits(model, bool(of_samples), needs)
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

    data = open_table(merge(own, table_of(values["data"])) if "data" in values else own)
    split = values.get("split", "test")
    if split not in ("train", "test"):
        raise registry.unknown("split", split, ("train", "test"), "gencli eval --help")
    if not len(data.split(split)):
        raise GencliError(f"data set '{data.name}' has no {split} items", "give --split train")
    return data


def _extractor(values: dict[str, Any], kind: str) -> Any:
    from gencli import device
    from gencli.metrics._features import extractor

    default = "gencli" if kind == "image" else "points"
    weights = Path(values["weights"]) if "weights" in values else None
    return extractor(values.get("features", default), weights, values["fetch"], device.default())


def _plan(values: dict[str, Any], data: Any, loaded: Any) -> Any:
    from gencli.evaluation.evaluate import Plan, default_n

    split = values.get("split", "test")
    n = values.get("n", default_n(data, split))
    for flag, value in (("-n", n), ("--batch-size", values.get("batch", 64))):
        if value < 1:
            raise GencliError(f"{flag} is {value}", "give 1 or more")
    steps = {"steps": values["steps"]} if "steps" in values else {}
    sampler = loaded.sampler(values.get("sampler"), steps) if loaded and (steps or "sampler" in values) else None
    guidance = guiding.guidance_of(values, loaded) if loaded else None
    return Plan(n, split, values.get("seed", 0), sampler, guidance, values.get("batch", 64))


def _one(values: dict[str, Any], found: runs.Found, of_samples: Sequence[Any], of_models: Sequence[Any]) -> list[Any]:
    from gencli import device
    from gencli.bundle import Run
    from gencli.core import main_first, world
    from gencli.evaluation import evaluate
    from gencli.evaluation.generate import cost

    loaded = Run.load(found.path, device.default())
    with main_first():
        data = _data(values, found.config["recipe"]["data"])
    evaluate.check_kinds(of_samples, data)
    plan = _plan(values, data, loaded)
    _warn(plan, data, found)
    results: list[Any] = []
    if not world().main:
        if of_samples:
            evaluate.assist(loaded, evaluate.request_of(loaded, plan))
        return results
    if of_samples:
        by = _extractor(values, data.kind)
        request = evaluate.request_of(loaded, plan)
        steps, calls = cost(loaded, request)
        console.say(f"checkpoint {found.name} · {plan.n} samples · {calls} network evaluations · features {by.name}")
        real, facts = evaluate.reference_of(data, plan, by)
        with console.task("sampling", steps, "steps") as task:
            fake, receipt = evaluate.features_of_run(loaded, by, request, task.advance)
        results += evaluate.compare(of_samples, real, fake, {**receipt, **facts})
    if of_models:
        console.say(f"checkpoint {found.name} · {min(plan.n, len(data.split(plan.split)))} {plan.split} items")
        results += evaluate.measure(of_models, loaded, data, plan)
    stored = evaluate.store(results, loaded, not found.shipped)
    console.say(f"receipts: {stored}")
    return results


def _folder(values: dict[str, Any], of_samples: Sequence[Any]) -> list[Any]:
    from gencli.evaluation import evaluate

    if "data" not in values:
        raise GencliError(
            "--samples needs --data, the reference to compare with", "gencli eval fid --samples DIR --data digits"
        )
    data = _data(values, {"name": "digits"})
    evaluate.check_kinds(of_samples, data)
    by = _extractor(values, data.kind)
    fake, receipt = evaluate.features_of_folder(Path(values["samples"]), by)
    plan = _plan({**values, "n": len(fake)}, data, None)
    real, facts = evaluate.reference_of(data, plan, by)
    return evaluate.compare(of_samples, real, fake, {**receipt, **facts})


def _warn(plan: Any, data: Any, found: runs.Found) -> None:
    if data.hash != found.config["data"]["hash"]:
        console.say(
            f"note: {data.name} is not what {found.name} was trained on (hash {found.config['data']['hash']}, here {data.hash})"
        )
    if plan.split == "train":
        console.say("note: the reference is the training split; memorised images look good")


def _print(results: Sequence[Any]) -> None:
    rows = []
    for result in results:
        v = result.value
        interval = f"{v.interval[0]:.4g} – {v.interval[1]:.4g}" if v.interval else ""
        rows.append(
            [
                v.name,
                f"{v.value:.4g}{' ' + v.unit if v.unit else ''}",
                interval,
                v.n,
                v.kind or v.better + " is better",
                v.note,
            ]
        )
    console.document(results=[result.row() for result in results])
    console.table(rows, ["metric", "value", "95 % interval", "n", "kind", "note"])
    if console.state.quiet:
        for result in results:
            console.out(f"{result.value.name}\t{result.value.value:.6g}")
    console.following("gencli info " + (results[0].receipt.get("run", "") or "fid"))
