"""Rebuild docs/gallery.md: a picture, an independent judge's score with its controls, and the cost of each trained run.

    python -m benchmarks.gallery checkpoints/vae-digits checkpoints/realnvp-digits
    python -m benchmarks.gallery --stale                  # which entries are older than their recipe or model file

An entry is called by its recipe. What is measured stands in docs/gallery/gallery.json; the page is made of that and of the
docstrings, so nothing in it is typed.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import judge
from gencli import files, recipe, registry
from gencli.bundle import DEFAULT_SAMPLERS, Run
from gencli.data import open_table
from gencli.evaluation.conditions import conditions_for
from gencli.evaluation.generate import Request, cost, generate, resolved
from gencli.evaluation.preview import reconstructions
from gencli.report.kinds.image import grid
from gencli.training.session import resolve

DOCS = Path(__file__).parent.parent / "docs"
FACTS = DOCS / "gallery" / "gallery.json"
JUDGES: dict[int, judge.Data] = {8: "digits-8x8", 16: "digits", 28: "fashion-mnist"}
COUNT, SHOWN, MOST_BYTES = 1000, 48, 25_000


def fingerprint(tables: dict[str, Any]) -> str:
    """Of what a recipe, or the run that was made with one, says of model and training, and of the model's file."""
    made = resolve(tables)
    module = registry.entry("models", made["model"]["name"]).module
    said = json.dumps([made["model"], made["train"]], sort_keys=True).encode()
    return hashlib.sha256(said + (DOCS.parent / Path(*module.split(".")).with_suffix(".py")).read_bytes()).hexdigest()[
        :16
    ]


def measured(folder: Path) -> dict[str, Any]:
    """Everything about one run that the page shows."""
    run = Run.load(folder)
    name = run.config["recipe"]["recipe"]
    data = open_table(run.config["recipe"]["data"])
    samples = any(isinstance(run.model, interface) for interface, _ in DEFAULT_SAMPLERS)
    made = drawn(run) if samples else {}
    shown = made.pop("images")[:SHOWN] if samples else reconstructions(run, data.split("test"), SHOWN // 2)
    picture(DOCS / "gallery" / f"{name}.webp", shown)
    return {
        "run": run.name,
        "commands": commands(run),
        "shows": "samples" if samples else "held-out images, each followed by its reconstruction",
        "data": data.name,
        "steps": run.step,
        "parameters": run.config["parameters"],
        "fingerprint": fingerprint(run.config["recipe"]),
        **made,
    }


def commands(run: Run) -> list[str]:
    """What to type for this run, its codec first."""
    made = f"gencli train {run.config['recipe']['recipe']}"
    codec = run.config.get("codec_models") or []
    return [f"gencli train {codec[0]}", f"{made} --codec {codec[0]}"] if codec else [made]


def drawn(run: Run) -> dict[str, Any]:
    """Samples, what they cost, and what the judge says of them and of the controls."""
    seeds = range(COUNT)
    request = resolved(run, Request(seeds, conditions_for(run, seeds)))
    began = time.perf_counter()
    images = torch.cat([step.chunk for step in generate(run, request) if step.chunk is not None])
    seconds = time.perf_counter() - began
    made: dict[str, Any] = {"images": images, "sampler": request.sampler.public_name()}
    made["evaluations"] = request.sampler.evaluations(run.model, run.spec)
    made["seconds_a_sample"] = round(seconds / COUNT, 5)
    made["network_calls"] = cost(run, request)[1]
    asked = request.cond.get("label", torch.full((COUNT,), -1))
    return made | judged(images, asked)


def judged(images: Tensor, asked: Tensor) -> dict[str, Any]:
    """The judge's figures for samples and both controls, which must fail its bar."""
    data = JUDGES[images.shape[-1]]
    truth = asked if (asked >= 0).all() else torch.full((len(images),), -1)
    rows = {
        "samples": judge.verdict(images, truth, data),
        "gaussian": judge.verdict(judge.gaussian(data, len(images)), truth, data),
        "untrained": judge.verdict(judge.untrained(data, len(images)), truth, data),
    }
    return {"judge": rows, "passes": {key: judge.passes(value) for key, value in rows.items()}}


def picture(path: Path, images: Tensor) -> None:
    """A WebP of at most 25 kB."""
    page = grid(images, columns=12)
    for quality in (90, 75, 60, 45, 30):
        data = io.BytesIO()
        page.save(data, "WEBP", quality=quality, method=6)
        if data.tell() <= MOST_BYTES:
            break
    assert data.tell() <= MOST_BYTES, f"{path} has {data.tell()} bytes"
    path.parent.mkdir(parents=True, exist_ok=True)
    files.atomic_write(path, data.getvalue())


# ------------------------------------------------------------------------------------------------------------------ the page

HEAD = """# Gallery

What each method makes with one command on a laptop, and what an independent judge says of it: a support vector machine on
raw pixels for digits, a small network for Fashion-MNIST, neither used in training. A method passes with at least
{bar}. Two controls must fail: one
Gaussian with the mean and covariance of all images, and an untrained network. N = {count} samples; *recognisable* is the
share whose best class leads by as much as it does for nine in ten held-out images; *novelty* is the distance to the nearest
training image, that of held-out images being 1. Times are of one thread of a shared CPU, and of the
sampler named: they rank methods, no more.

Made by `python -m benchmarks.gallery RUN…` from trained runs; nothing on this page is typed.
"""


def page(facts: dict[str, Any]) -> str:
    """The whole page."""
    bar = ", ".join(f"{key} {value:g}" for key, value in judge.BAR.items())
    parts = [HEAD.format(bar=bar, count=f"{COUNT:,}"), table(facts), missing(facts)]
    for name, entry in facts.items():
        model = registry.entry("models", recipe.load(name)["model"]["name"])
        lines = "\n".join([*entry["commands"], *([f"gencli sample {entry['run']}"] if "judge" in entry else [])])
        paper = f"{model.title} ({model.authors}, {model.year}), arXiv:{model.arxiv}"
        parts.append(
            f"## {name}\n\n{paper}. {recipe.summary(recipe.names()[name])}.\n\n```sh\n{lines}\n```\n\n"
            f"![{entry['shows']}](gallery/{name}.webp)\n\n{entry['shows'].capitalize()}.{sentence(entry)}\n"
        )
    return "\n".join(filter(None, parts))


def missing(facts: dict[str, Any]) -> str:
    """Methods that no entry shows yet."""
    shown = {recipe.load(name)["model"]["name"] for name in facts}
    rest = ", ".join(f"`{name}`" for name in registry.entries("models") if name not in shown)
    return f"Not shown yet: {rest}.\n" if rest else ""


def table(facts: dict[str, Any]) -> str:
    """Cost and score, a method a line."""
    rows = ["| recipe | parameters | steps | sampler | evaluations | ms a sample | judge | passes |"]
    rows.append("|---|--:|--:|---|--:|--:|---|---|")
    for name, entry in facts.items():
        start = f"| [`{name}`](#{name}) | {entry['parameters']:,} | {entry['steps']:,} "
        if "judge" not in entry:
            rows.append(f"{start}| | | | no prior of its own | |")
            continue
        took = f"{1000 * entry['seconds_a_sample']:.3g}"
        verdict = f"{figures(entry['judge']['samples'])} | {'yes' if entry['passes']['samples'] else 'no'}"
        rows.append(f"{start}| `{entry['sampler']}` | {entry['evaluations']} | {took} | {verdict} |")
    return "\n".join(rows) + "\n"


def figures(row: dict[str, float]) -> str:
    """The judge's figures in a few words."""
    keys = [key for key in ("accuracy", "recognisable", "precision", "recall", "novelty") if key in row]
    return ", ".join(f"{key} {row[key]:.2f}" for key in keys)


def sentence(entry: dict[str, Any]) -> str:
    """What the judge says of an entry and its controls."""
    if "judge" not in entry:
        return ""
    word = {True: "passes", False: "does not pass"}
    control = {True: "passes, which it must not", False: "fails, as it must"}
    parts = [f" The judge: {figures(entry['judge']['samples'])}; it {word[entry['passes']['samples']]}."]
    for key, called in (("gaussian", "The Gaussian"), ("untrained", "An untrained network")):
        parts.append(f" {called} {control[entry['passes'][key]]} ({figures(entry['judge'][key])}).")
    return "".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="*", help="folders of trained runs")
    parser.add_argument("--stale", action="store_true", help="only say which entries are stale")
    args = parser.parse_args()
    facts = json.loads(FACTS.read_text(encoding="utf-8")) if FACTS.exists() else {}
    if args.stale:
        for name, entry in facts.items():
            if entry["fingerprint"] != fingerprint(recipe.load(name)):
                print(name)
        return
    for folder in args.runs:
        name = json.loads((folder / "config.json").read_text(encoding="utf-8"))["recipe"]["recipe"]
        facts[name] = measured(folder)
        print(f"{name}: {sentence(facts[name]) or 'reconstructions'}")
        order = sorted(facts, key=lambda key: (recipe.load(key)["model"]["name"], key))
        facts = {key: facts[key] for key in order}
        files.atomic_json(FACTS, facts)
    files.atomic_write(DOCS / "gallery.md", page(facts).encode())


if __name__ == "__main__":
    main()
