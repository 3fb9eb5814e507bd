"""Does every diffusion method learn? One table, from runs trained with their recipes; what is there is not made again.

    python -m benchmarks.quality points  [--runs DIR] [RECIPE …]     toy2d: sliced Wasserstein against the bar
    python -m benchmarks.quality digits  [--runs DIR] [RECIPE …]     what the judge says at guidance 1
    python -m benchmarks.quality bits    [--runs DIR]                bits/dim of digits at 8×8
    python -m benchmarks.quality matrix  [--runs DIR] [RECIPE …]     FID of every checkpoint with every sampler
    python -m benchmarks.quality page                                docs/quality.md, from what is stored

Runs are looked for by recipe in DIR (`checkpoints`) and trained where they are missing. Results stand in
`docs/quality.json`, and the page is made of it; a result of the same weights is kept.

points: N = 4,096, 128 fixed directions, the median of three seeds; the bar is 1.5 times the 95th percentile of 20 draws of
real against real points, and a Gaussian with the data's mean and covariance must miss it.
digits: class-conditional models must be classified as asked in 90 % of 500 samples, with a mean distance between samples of a
class of at least 0.7 of the real one; others need recall 0.4, a class entropy of 2.0 nats, and 60 % recognisable, without
which the Gaussian of the judge would pass. Both controls of the judge must miss it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import judge
from gencli import files, recipe, registry
from gencli.bundle import Run
from gencli.core import Denoiser, Rng
from gencli.data import open_table
from gencli.errors import GencliError
from gencli.evaluation import compare
from gencli.evaluation.conditions import conditions_for
from gencli.evaluation.generate import Request, resolved, samples
from gencli.metrics.bpd import Bpd
from gencli.metrics.wasserstein import sliced

FACTS = Path(__file__).parent.parent / "docs" / "quality.json"
N_POINTS, N_DIGITS = 4096, 500
BAR = {"asked": 0.9, "spread": 0.7, "recall": 0.4, "entropy": 2.0, "recognisable": 0.6}


def recipes(data: str) -> list[str]:
    """Laptop recipes of diffusion models on a data set."""
    found = []
    for name, path in recipe.names().items():
        table = recipe.load(name)
        family = registry.entry("models", table["model"]["name"]).family
        if (
            family == "diffusion"
            and table.get("data", {}).get("name", "digits") == data
            and path.parent == recipe.FOLDER
        ):
            found.append(name)
    return found


def trained(name: str, folder: Path, *flags: str, called: str = "") -> Run:
    """The newest run of a recipe in `folder`, trained by the command line where there is none."""
    path = folder / (called or name)
    if not (path / "model.safetensors").exists():
        command = [sys.executable, "-m", "gencli", "train", name, "--out", str(folder), "--name", path.name, *flags]
        subprocess.run(command, check=True)
    return Run.load(path)


def drawn(run: Run, count: int, seed: int = 0, **more: Any) -> tuple[Tensor, Tensor]:
    """Samples and the classes that were asked for (−1 where none was)."""
    seeds = range(seed, seed + count)
    request = resolved(run, Request(seeds, conditions_for(run, seeds), micro=256, **more))
    return samples(run, request), request.cond.get("label", torch.full((count,), -1))


# -------------------------------------------------------------------------------------------------------------- points


def points(run: Run) -> dict[str, Any]:
    """The distance of three draws, the bar, and the control."""
    data = open_table(run.config["recipe"]["data"])
    real = torch.from_numpy(data.split("test").x).double().numpy()
    rng = np.random.default_rng(0)
    floor = [sliced(*(real[rng.choice(len(real), N_POINTS, replace=False)] for _ in range(2))) for _ in range(20)]
    bar = 1.5 * float(np.percentile(floor, 95))
    made = [drawn(run, N_POINTS, seed * N_POINTS)[0].double().numpy() for seed in range(3)]
    found = [sliced(real[:N_POINTS], one) for one in made]
    gaussian = rng.multivariate_normal(real.mean(0), np.cov(real.T), N_POINTS)
    control = sliced(real[:N_POINTS], gaussian)
    assert control > bar, f"the control {control:.3f} passes the bar {bar:.3f}"
    value = float(np.median(found))
    return {"distance": value, "bar": bar, "gaussian": control, "passes": value <= bar}


# -------------------------------------------------------------------------------------------------------------- digits


def spread(images: Tensor, labels: Tensor) -> float:
    """Mean distance between two images of a class, averaged over classes."""
    means = []
    for label in labels.unique():
        rows = images[labels == label].flatten(1).double()
        means.append(float(torch.pdist(rows).mean()))
    return sum(means) / len(means)


def verdict(images: Tensor, asked: Tensor) -> dict[str, float]:
    """What decides whether digits are learned."""
    seen = judge.classify(images, "digits")
    share = torch.bincount(seen, minlength=10).double() / len(seen)
    made = {"recall": judge.manifold(images, "digits")[1], "entropy": float(torch.special.entr(share).sum())}
    made["recognisable"] = judge.recognisable(images, "digits")
    made["novelty"] = judge.novelty(images, "digits")
    if (asked >= 0).all():
        real, truth = judge.real("digits", "test")
        made["asked"] = float((seen == asked).double().mean())
        made["spread"] = spread(images, asked) / spread(real, truth)
    return made


def passes(found: dict[str, float]) -> bool:
    """Class-conditional models by what was asked, others by what they cover and whether it is digits."""
    keys = ("asked", "spread") if "asked" in found else ("recall", "entropy", "recognisable")
    return all(found[key] >= BAR[key] for key in keys)


def digits(run: Run) -> dict[str, Any]:
    """The judge's figures for a run at guidance 1, and for the controls."""
    began = time.perf_counter()
    images, asked = drawn(run, N_DIGITS, guidance=1.0)
    seconds = time.perf_counter() - began
    found = verdict(images, asked)
    controls = {
        "gaussian": verdict(judge.gaussian("digits", N_DIGITS), asked),
        "untrained": verdict(judge.untrained("digits", N_DIGITS), asked),
    }
    failing = {key: not passes(value) for key, value in controls.items()}
    return {**found, "passes": passes(found), "controls_fail": failing, "seconds_a_sample": seconds / N_DIGITS}


# ---------------------------------------------------------------------------------------------------------------- bits


BITS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("ddpm", {"samples": 50}),
    "ddpm, by its ODE": ("ddpm", {"method": "ode"}),
    "vdm": ("vdm", {"samples": 50}),
    "score-sde": ("score-sde", {}),
}
NETS: dict[str, tuple[str, ...]] = {"vdm": ("--net", "vdm-unet", "--net.width", "32", "--net.layers", "4")}
"""What is trained with another network than the recipe's: for bits, VDM with the paper's at full resolution."""


def bits(run: Run, **settings: Any) -> dict[str, Any]:
    """Bits/dim of held-out digits with its standard error and type."""
    data = open_table(run.config["recipe"]["data"])
    value = Bpd.make(settings)(run, data.split("test"), Rng.batch("evaluate", 0, "bpd", total=1), batch_size=64)
    return {"bits": value.value, "error": value.facts["standard_error"], "kind": value.kind, "note": value.note}


# -------------------------------------------------------------------------------------------------------------- running


def stored() -> dict[str, Any]:
    """What was measured so far."""
    return json.loads(FACTS.read_text(encoding="utf-8")) if FACTS.exists() else {}


def once(table: str, key: str, run: Run, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row of a table, measured unless the same weights were."""
    facts = stored()
    rows = facts.setdefault(table, {})
    if rows.get(key, {}).get("weights") != run.weights_hash():
        made = measure()
        facts = stored()
        facts.setdefault(table, {})[key] = {"weights": run.weights_hash(), "steps": run.step, **made}
        files.atomic_json(FACTS, facts)
        rows = facts[table]
    return rows[key]


# -------------------------------------------------------------------------------------------------------------- matrix


EVALUATIONS, N_MATRIX, WORST = 25, 256, 3.0
PATIENT = {"langevin": 4, "annealed-langevin": 4, "reverse-sde": 4, "predictor-corrector": 4, "ancestral": 2}
"""Samplers that need more evaluations than the others, by how many times; never above 100."""
LOOSE: dict[str, dict[str, Any]] = {
    "pf-ode": {"rtol": 1e-3, "atol": 1e-3},
    "annealed-langevin": {"inner": 4, "step_size": 0.5},
}
"""Settings that bring a sampler within its evaluations."""


def matrix(names: list[str], folder: Path) -> None:
    """Every checkpoint with every sampler of denoisers: a FID at 100 evaluations at most, or the reason why there is none."""
    for name in names:
        run = trained(name, folder)
        print(name, once("matrix", name, run, lambda run=run: row(run, folder / "matrix" / run.name)), flush=True)


def row(run: Run, folder: Path) -> dict[str, Any]:
    """One checkpoint's cells, kept in `folder` as they are made, with a picture of each."""
    from gencli.metrics._features import extractor

    data = open_table(run.config["recipe"]["data"])
    metric = registry.load("metrics", "fid").make()
    bench = compare.Bench(run, data, [("fid", metric)], extractor("gencli"), N_MATRIX, guidance=1.0, batch=128)
    plan = [planned(bench, name) for name in samplers()]
    done = list(compare.compare(bench, plan, compare.Ledger(folder, bench.facts())))
    best = min((cell.value for cell in done if cell.value is not None), default=0.0)
    return {"best": best or None, "cells": {cell.sampler: told(cell, best) for cell in done}}


def samplers() -> list[str]:
    """The samplers of denoisers."""
    known = {name: registry.load("samplers", name) for name in registry.entries("samplers")}
    return [name for name, sampler in known.items() if sampler.interface is Denoiser and not sampler.takes]


def planned(bench: compare.Bench, name: str) -> compare.Planned:
    """A sampler with as many steps as its evaluations allow."""
    settings = LOOSE.get(name, {})
    steps = bench.most_steps(name, min(100, EVALUATIONS * PATIENT.get(name, 1)), settings)
    return bench.cell(name, 20 if name == "pf-ode" else steps, settings)


def told(cell: compare.Cell, best: float) -> dict[str, Any]:
    """A cell in a few words."""
    if cell.value is None:
        return {"reason": cell.reason, "why": cell.why}
    fine = cell.value <= WORST * best
    return {"fid": cell.value, "evaluations": cell.evaluations, "seconds": cell.seconds, "accepted": fine}


# ---------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=("points", "digits", "bits", "matrix", "page"))
    parser.add_argument("recipes", nargs="*", metavar="RECIPE")
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"), help="where runs are, and are made")
    given = parser.parse_args()
    if given.table == "page":
        from benchmarks.page import page

        files.atomic_write(FACTS.with_suffix(".md"), page(stored()).encode())
        return
    names = given.recipes or recipes("toy2d" if given.table == "points" else "digits")
    if given.table == "matrix":
        matrix(names, given.runs)
    elif given.table == "bits":
        for label, (name, settings) in BITS.items():
            run = trained(name, given.runs, "--image-size", "8", *NETS.get(name, ()), called=f"{name}-8")
            print(label, once("bits", label, run, lambda run=run, more=settings: bits(run, **more)), flush=True)
    else:
        measure = points if given.table == "points" else digits
        for name in names:
            try:
                run = trained(name, given.runs)
                print(name, once(given.table, name, run, lambda run=run: measure(run)), flush=True)
            except (GencliError, subprocess.CalledProcessError) as error:
                print(name, error, flush=True)


if __name__ == "__main__":
    main()
