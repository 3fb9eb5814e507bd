"""Bits per dimension of every autoregressive model of pixels, on the same held-out images, unconditionally.

    python -m benchmarks.pixels digits         [--runs DIR] [ROW …]     8×8, 17 grey levels, all 169 held-out images
    python -m benchmarks.pixels fashion-mnist  [--runs DIR] [ROW …]     28×28, 256 grey levels, 500 held-out images
    python -m benchmarks.pixels curves         [--runs DIR]             training of the three PixelCNNs, as a picture

Runs are looked for in DIR (`checkpoints`) and trained where they are missing, each by its laptop recipe; PixelCNN, Gated
PixelCNN and PixelCNN++ for as many epochs as each other, and compared image by image: the mean difference to the row before
it in that order, with the standard error of a mean of differences; one that is above what it should be below is marked, and
`curves` shows why. `longer` rows have three times the steps. Rows stand in `docs/quality.json`.

Two controls that every model must beat: a histogram for each pixel, of the training images with one more count of every
value, and the size of the images as PNG files, each written alone with the strongest compression.
"""

from __future__ import annotations

import argparse
import io
import math
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.quality import FACTS, once, stored, trained
from gencli import files, recipe
from gencli.bundle import Run
from gencli.core import Items, Rng
from gencli.data import open_table
from gencli.evaluation.budget import rows_of, spent_by, still_falling
from gencli.metrics._base import base_seed, item_rows, spread
from gencli.metrics.bpd import Bpd, is_mass

N = {"digits": 169, "fashion-mnist": 500}
BEFORE = {
    "gated-pixelcnn": "pixelcnn",
    "pixelcnnpp": "gated-pixelcnn",
    "gated-pixelcnn, longer": "pixelcnn, longer",
}
"""What is compared with what, image by image."""
PICTURE = FACTS.parent / "pictures" / "pixelcnns.png"
CURVES = {"digits": (1.5, 2.6), "fashion-mnist": (2.8, 4.6)}
"""The bits that a picture shows."""

DIGITS = ("--image-size", "8", "--unconditional")
EQUAL = ("--steps", "800", "--batch-size", "64")
FASHION = ("--data", "fashion-mnist", "--unconditional")
FEW = ("--steps", "500", "--batch-size", "16")
MORE = ("--steps", "1500", "--batch-size", "16")
NARROW = ("--steps", "1000", "--batch-size", "32", "--lr", "1e-2", "--net.hidden", "64", "--no-net.direct")
"""Of MADE, whose output layer has a row for every value of every pixel."""
ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "digits": {
        "made": ("made", *DIGITS),
        "pixelrnn": ("pixelrnn", *DIGITS),
        "pixelcnn": ("pixelcnn", *DIGITS, *EQUAL),
        "gated-pixelcnn": ("gated-pixelcnn", *DIGITS, *EQUAL),
        "pixelcnnpp": ("pixelcnnpp", *DIGITS, *EQUAL),
        "pixelcnn-aux": ("pixelcnn-aux", *DIGITS),
        "spn": ("spn", *DIGITS),
        "gpt": ("gpt", *DIGITS),
        "imagegpt": ("imagegpt", *DIGITS),
        "image-transformer": ("image-transformer", *DIGITS),
        "hier-ar-aux": ("hier-ar-aux", *DIGITS),
    },
    "fashion-mnist": {
        "made": ("made", *FASHION, *NARROW),
        "pixelrnn": ("pixelrnn", *FASHION, *FEW),
        "pixelcnn": ("pixelcnn", *FASHION, *FEW),
        "gated-pixelcnn": ("gated-pixelcnn", *FASHION, *FEW),
        "pixelcnnpp": ("pixelcnnpp-fashion-mnist", "--unconditional", *FEW),
        "pixelcnn, longer": ("pixelcnn", *FASHION, *MORE),
        "gated-pixelcnn, longer": ("gated-pixelcnn", *FASHION, *MORE),
        "pixelcnn-aux": ("pixelcnn-aux", *FASHION, *FEW),
        "spn": ("spn", *FASHION, *FEW),
        "gpt": ("gpt", *FASHION, *FEW),
        "imagegpt": ("imagegpt", *FASHION, *FEW),
        "image-transformer": ("image-transformer", *FASHION, *FEW),
        "hier-ar-aux": ("hier-ar-aux", *FASHION, *FEW),
    },
}


def each(run: Run, items: Items, n: int) -> np.ndarray:
    """Bits per dimension of `n` held-out images `(n,)`."""
    metric, seed = Bpd.make({}), base_seed(Rng.batch("evaluate", 0, "bpd", total=1), "bpd")
    made = []
    for indices in spread(len(items), n).split(64):
        made.append(metric.bits(run, items.batch(indices), item_rows(seed, indices, run.model))[0])
    return torch.cat(made).numpy()


def with_error(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))


def row(data: str, name: str, run: Run, folder: Path) -> dict[str, Any]:
    """A model's bits, what it took, and its difference to the model before it, whose bits are in `folder`."""
    bits = each(run, open_table(run.config["recipe"]["data"]).split("test"), N[data])
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{name}.npy", bits)
    mean, error = with_error(bits)
    made = {
        "bits": mean,
        "error": error,
        "kind": "exact" if run.model.likelihood == "exact" and is_mass(run.model) else "bound",
        "parameters": sum(p.numel() for p in run.model.parameters()),
        **trained_for(run),
    }
    before = folder / f"{BEFORE.get(name)}.npy"
    if before.exists():
        made["apart"], made["apart_error"] = with_error(bits - np.load(before))
        made["mark"] = "undertrained" if made["apart"] > 0 else ""
    return made


def trained_for(run: Run) -> dict[str, float | None]:
    """Minutes of training, and the share of itself that the loss still lost in the last tenth, as `gencli compare` has it."""
    assert run.path is not None, "a run on disk"
    log = rows_of(run.path)
    return {"minutes": (spent_by(log) or 0.0) / 60, "falling": still_falling(log)}


def histogram(train: np.ndarray, test: np.ndarray, levels: int) -> np.ndarray:
    """Bits per dimension `(n,)` of values `(n, D)` below `levels` under a histogram for each of the D places."""
    counts = np.stack([np.bincount(column, minlength=levels) for column in train.T]) + 1.0
    p = counts / counts.sum(1, keepdims=True)
    return -np.log2(p[np.arange(test.shape[1]), test]).mean(1)


def png(images: np.ndarray) -> np.ndarray:
    """Bits per dimension `(n,)` of uint8 images `(n, height, width)` as files."""
    sizes = []
    for image in images:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "png", optimize=True)
        sizes.append(8 * len(file.getvalue()) / image.size)
    return np.array(sizes)


def controls(data: str) -> dict[str, dict[str, Any]]:
    """What knows each pixel's histogram alone, and what knows files."""
    table = {"name": "digits", "image_size": 8} if data == "digits" else {"name": data}
    opened = open_table(table)
    train, test = (opened.split(split) for split in ("train", "test"))
    chosen = test.batch(spread(len(test), N[data]))["x"].numpy()
    known = train.batch(torch.arange(len(train)))["x"].numpy()
    levels, index = np.unique(np.concatenate([known, chosen]), return_inverse=True)
    assert len(levels) == opened.spec.x.vocab, "the data's own number of grey levels"
    places = index.reshape(len(known) + len(chosen), -1)
    flat = histogram(places[: len(known)], places[len(known) :], len(levels))
    made = {"histogram of each pixel": with_error(flat), "PNG files": with_error(png(chosen[:, 0]))}
    return {name: {"bits": mean, "error": error, "kind": "control"} for name, (mean, error) in made.items()}


def measured(data: str, names: list[str], runs: Path) -> None:
    """Every row that is not there yet, and the controls."""
    facts = stored()
    facts.setdefault(f"pixels-{data}", {}).update(controls(data))
    files.atomic_json(FACTS, facts)
    for name in names or ROWS[data]:
        source, *flags = ROWS[data][name]
        if (data, name) == ("fashion-mnist", "imagegpt"):
            source = of_all_levels(source, runs)
        run = trained(source, runs, *flags, called=called(data, name))
        measure = partial(row, data, name, run, runs / f"bits-{data}")
        print(name, once(f"pixels-{data}", name, run, measure), flush=True)


def of_all_levels(name: str, folder: Path) -> str:
    """A recipe whose images keep the grey levels that the data have: the path of a file in `folder`."""
    path = folder / "recipes" / f"{name}-all-levels.toml"
    text, times = re.subn(r"^levels = \d+\n", "", recipe.names()[name].read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert times == 1, f"{name} no longer says how many levels it keeps"
    files.atomic_write(path, text.encode())
    return str(path)


def called(data: str, name: str) -> str:
    """A row's run."""
    return f"{name.replace(', ', '-')}-{data}-bits"


def curves(runs: Path) -> None:
    """Bits of training batches by step, averaged over a twentieth of the run, and at the end those of held-out images."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    facts = stored()
    for place, data in enumerate(ROWS, 1):
        axes = figure.add_subplot(1, len(ROWS), place)
        kin = [name for name in facts[f"pixels-{data}"] if "pixelcnn" in name and name != "pixelcnn-aux"]
        for i, name in enumerate(kin):
            log = [row for row in rows_of(runs / called(data, name)) if "bits_per_dim" in row]
            width = max(1, len(log) // 20)
            parts = [log[i : i + width] for i in range(0, len(log), width)]
            bits = [np.mean([row["bits_per_dim"] for row in part]) for part in parts]
            axes.plot([part[-1]["step"] for part in parts], bits, color=f"C{i}", label=name)
            held_out = facts[f"pixels-{data}"][name]
            axes.errorbar(log[-1]["step"], held_out["bits"], held_out["error"], color=f"C{i}", marker="o", capsize=3)
        axes.set(title=data, xlabel="step", ylabel="bits/dim (held out: ●)", ylim=CURVES[data])
        axes.legend(fontsize=7)
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=(*ROWS, "curves"))
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"), help="where runs are, and are made")
    given = parser.parse_args()
    if given.data == "curves":
        curves(given.runs)
    else:
        measured(given.data, given.rows, given.runs)


if __name__ == "__main__":
    main()
