"""GANs of points: modes made of 8 and 25 Gaussians, the share of good samples, and whether training said what is missing.

    python -m benchmarks.modes [--seeds 5] [--seconds 60] [--data 8-gaussians 25-gaussians] [NAME …]

Every method by its laptop recipe on eight Gaussians, nothing tuned for the other data: trained for as many steps as fit into
so many seconds on this machine, its schedule laid over those. A mode is made if a tenth of its share of 2,500 samples lies
within three deviations, which are the good ones (`training/adversarial.py`). Rows stand in `docs/modes.json`; what is there
already is kept. Control: the Gaussian with the mean and covariance of the data.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from gencli import files, recipe
from gencli.config import merge
from gencli.core import Rng
from gencli.data import open_table
from gencli.training import adversarial
from gencli.training.session import Session, resolve

FACTS = Path(__file__).parents[1] / "docs" / "modes.json"
RECIPES = {
    "gan": ("gan-toy2d", {}),
    "gan minimax": ("gan-toy2d", {"objective": "minimax"}),
    "lsgan": ("lsgan", {}),
    "wgan": ("wgan", {}),
    "wgan-gp": ("wgan-gp-toy2d", {}),
    "f-gan": ("f-gan", {}),
}
SHAPES = ("8-gaussians", "25-gaussians")
PROBE = 40  # steps that tell how long one takes


def tables(name: str, shape: str, seed: int, steps: int, saves: int) -> dict[str, Any]:
    """A method's recipe on a shape; looked at whenever it is saved."""
    path, settings = RECIPES[name]
    train = {"steps": steps, "seed": seed, "save_every": max(1, steps // saves), "sample_every": 10**9}
    data = {"name": "toy2d", "shape": shape}
    return resolve(merge(recipe.load(path), {"model": settings, "data": data, "train": train}))


def trained(name: str, shape: str, seed: int, steps: int, saves: int = 4) -> tuple[dict[str, Any], list[str], float]:
    """What was found of the samples at the end, what training told, and the seconds from its first step to its last."""
    made = tables(name, shape, seed, steps, saves)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(made, open_table(made["data"]), Path(folder))
        told, marks = [], []
        for event in session.events():
            if event.kind == "note":
                told.append(event.text)
            elif event.kind == "step":
                marks.append(time.perf_counter())
        return adversarial.read(session.folder / adversarial.FILE)[-1], told, marks[-1] - marks[0]


def one(name: str, shape: str, seed: int, seconds: float) -> dict[str, Any]:
    """A row: a method, a shape, a seed."""
    step = trained(name, shape, seed, PROBE, saves=1)[2] / (PROBE - 1)
    steps = max(PROBE, round(seconds / step))
    found, told, taken = trained(name, shape, seed, steps)
    missed = any(text.startswith("samples miss modes") for text in told)
    facts = {key: found[key] for key in ("modes", "of", "good", "diversity")}
    return {
        "method": name,
        "data": shape,
        "seed": seed,
        "steps": steps,
        "seconds": round(taken, 1),
        **facts,
        "told": missed,
    }


def control(shape: str) -> dict[str, Any]:
    """The Gaussian of the data, by the same judge."""
    part = open_table({"name": "toy2d", "shape": shape}).split("train")
    batch = part.batch(torch.arange(len(part)))
    judge = adversarial.Modes.of(batch["x"], batch["label"], int(batch["label"].max()) + 1)
    noise = Rng.rows(range(adversarial.POINTS)).normal((adversarial.POINTS, 2))
    made = batch["x"].mean(0) + noise @ torch.linalg.cholesky(batch["x"].T.cov()).T
    return {"method": "Gaussian", "data": shape, "seed": 0, **judge(made), "told": False}


def line(rows: list[dict[str, Any]]) -> str:
    """Mean and spread over seeds."""

    def shown(key: str, scale: float = 1.0) -> str:
        values = [scale * row[key] for row in rows]
        return f"{statistics.mean(values):6.1f} ± {statistics.stdev(values) if len(values) > 1 else 0.0:4.1f}"

    lost = [row for row in rows if row["modes"] < row["of"]]
    warned = (
        f"{sum(row['told'] for row in lost)} of {len(lost)}, else {sum(row['told'] for row in rows if row not in lost)}"
    )
    first = rows[0]
    return f"{first['method']:14} {first['data']:14} {shown('modes')} of {first['of']:2}   {shown('good', 100)} %   {warned}"


def main() -> None:
    """Fill in what is missing, and print all."""
    read = argparse.ArgumentParser(prog="python -m benchmarks.modes", description=__doc__.split("\n", 1)[0])
    read.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RECIPES)}; all by default")
    read.add_argument("--seeds", type=int, default=5)
    read.add_argument("--seconds", type=float, default=60.0)
    read.add_argument("--data", nargs="+", choices=SHAPES, default=SHAPES)
    given = read.parse_args()
    if unknown := set(given.names) - set(RECIPES):
        read.error(f"no method {', '.join(sorted(unknown))}; there are {', '.join(RECIPES)}")
    known = json.loads(FACTS.read_text(encoding="utf-8")) if FACTS.exists() else []
    print(f"{'method':14} {'data':14} {'modes':>19}   {'good samples':>15}   told where modes are missing", flush=True)
    for shape in given.data:
        for name in given.names or RECIPES:
            rows = []
            for seed in range(given.seeds):
                same = [row for row in known if (row["method"], row["data"], row["seed"]) == (name, shape, seed)]
                rows.append(same[0] if same else one(name, shape, seed, given.seconds))
                known += [] if same else rows[-1:]
                files.atomic_json(FACTS, known)
            print(line(rows), flush=True)
        print(line([control(shape)]), flush=True)


if __name__ == "__main__":
    main()
