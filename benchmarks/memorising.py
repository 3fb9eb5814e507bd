"""How much of a model's samples stems from its training items: denoisers of few and of many images, and the shipped models.

    python -m benchmarks.memorising [--runs DIR] [ROW …]

The first rows are one recipe on 16, 64, 512 and 4,096 images of Fashion-MNIST at 16×16 without classes, with the same number
of steps; 1,000 others are held out. The excess share must fall from row to row. The shipped models are measured on the data
that they were trained on. N = 500, sampled as
each recipe says. Rows stand in `docs/quality.json`; `python -m benchmarks.quality page` prints them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from benchmarks.quality import once, trained
from gencli import home
from gencli.bundle import Run
from gencli.data import open_table
from gencli.evaluation import items
from gencli.evaluation.evaluate import Plan
from gencli.metrics._features import extractor
from gencli.metrics.memorisation import Memorisation

COUNTS = (16, 64, 512, 4096)
HELD, N = 1000, 500
FLAGS = ("--steps", "1500", "--batch-size", "64", "--image-size", "16", "--unconditional")


def images(count: int, folder: Path) -> Path:
    """A folder of PNG files: `count` to train on, always the first of those of more, and the same ones held out."""
    source = open_table({"name": "fashion-mnist"})
    for split, wanted in (("train", count), ("test", HELD)):
        into = folder / split
        if into.is_dir() and len(list(into.iterdir())) == wanted:
            continue
        into.mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(source.split(split).batch(torch.arange(wanted))["x"][:, 0].numpy()):
            Image.fromarray(image).save(into / f"{i:05}.png")
    return folder


def row(run: Run) -> dict[str, Any]:
    """What `gencli eval memorisation` says of a run, in the bundled features and in pixels."""
    data = open_table(run.config["recipe"]["data"])
    plan = Plan(N, batch=128)
    results, _ = items.measure([("memorisation", Memorisation.make())], run, data, extractor("gencli"), plan)
    made: dict[str, Any] = {"training_items": len(data.split("train"))}
    for key, value in zip(("features", "features_share", "pixels", "pixels_share"), results, strict=True):
        assert value.value.interval is not None, "memorisation has an interval"
        made[key], made[f"{key}_from"], made[f"{key}_to"] = value.value.value, *value.value.interval
        made["alarm"] = value.value.facts["alarm"]
    return made


def measured(name: str, runs: Path) -> dict[str, Any]:
    """A row of the table: one of `COUNTS`, or a shipped model."""
    if name.isdigit():
        folder = images(int(name), runs / "few" / f"clothes-{name}")
        run = trained("ddpm", runs, "--data", str(folder), *FLAGS, called=f"ddpm-of-{name}")
    else:
        run = Run.load(home.shipped_runs() / name)
    return once("memorisation", name, run, lambda: row(run))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="a number of images, or a shipped model")
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"), help="where runs are, and are made")
    given = parser.parse_args()
    shipped = sorted(path.parent.name for path in home.shipped_runs().glob("*/config.json"))
    for name in given.rows or [*map(str, COUNTS), *shipped]:
        print(name, measured(name, given.runs), flush=True)


if __name__ == "__main__":
    main()
