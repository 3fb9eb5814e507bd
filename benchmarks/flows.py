"""Every normalising flow: nats from the exact density of points, bits per dimension of images, and how exactly it is inverted.

    python -m benchmarks.flows points         [--runs DIR] [ROW …]     eight Gaussians, all held-out points
    python -m benchmarks.flows digits         [--runs DIR] [ROW …]     8×8, 17 grey levels, all 169 held-out images
    python -m benchmarks.flows fashion-mnist  [--runs DIR] [ROW …]     28×28, 256 grey levels, 500 held-out images
    python -m benchmarks.flows sheet          [--runs DIR]             all densities of points in one picture

Runs are looked for in DIR (`checkpoints`) and trained where they are missing, each by its laptop recipe; what has no recipe for
the data, by that of other data and the flags in `ROWS`. Rows stand in `docs/quality.json`; one of the same weights is kept.

points: the mean of log p(x) − log q(x), p being the data's exact density and q the flow's, with the exact trace; what q
integrates to over [−4, 4]². Control: the Gaussian with the mean and covariance of the training points.
images: bits of dequantised images, the mean of `DRAWS` draws of the uniform noise for each, the same noise for every row; the
difference to the Gaussian, image by image, with the standard error of a mean of differences; and the round trip. Control: the
Gaussian with the mean and full covariance of the dequantised training images, whose noise is taken into account exactly.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from benchmarks.pixels import trained_for, with_error
from benchmarks.quality import FACTS, once, stored, trained
from gencli import files
from gencli.bundle import Run
from gencli.core import Items, Rng, Spec
from gencli.data import open_table
from gencli.evaluation import density
from gencli.metrics._base import base_seed, item_rows, spread
from gencli.metrics.bpd import Bpd
from gencli.metrics.roundtrip import Roundtrip
from gencli.report.kinds import points as plane
from gencli.report.kinds._pictures import matrix, save_picture

N = {"digits": 169, "fashion-mnist": 500}
DRAWS = 4
SQUARE = (-4.0, 4.0, -4.0, 4.0)
SHEET = FACTS.parent / "pictures" / "flows.png"

POINTS = ("--data", "toy2d")
DIGITS = ("--data", "digits", "--image-size", "8", "--unconditional")
LEARNED = ("--dequantiser", "variational")
MLP = ("--net", "mlp", "--net.width", "64", "--net.layers", "2")
ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "points": {
        "linear-flow": ("linear-flow",),
        "nice": ("nice", *POINTS, "--steps", "3000"),
        "realnvp": ("realnvp", *POINTS, *MLP, "--couplings", "7", "--steps", "3000", "--batch-size", "256"),
        "planar": ("planar",),
        "radial": ("radial",),
        "maf": ("maf-toy2d",),
        "iaf": ("iaf",),
        "nsf": ("nsf",),
        "neural-ode": ("neural-ode",),
        "ffjord": ("ffjord-toy2d",),
    },
    "digits": {
        "linear-flow": ("linear-flow", *DIGITS),
        "planar": ("planar", *DIGITS),
        "radial": ("radial", *DIGITS, "--linear"),
        "nice": ("nice",),
        "realnvp": ("realnvp",),
        "maf": ("maf",),
        "maf, learned dequantiser": ("maf", *LEARNED),
        "nsf": ("nsf", *DIGITS, "--steps", "1500", "--batch-size", "64"),
        "glow": ("glow",),
        "glow, learned dequantiser": ("glow", *LEARNED),
        "ffjord": ("ffjord",),
    },
    "fashion-mnist": {"realnvp": ("realnvp-fashion-mnist",), "glow": ("glow-fashion-mnist",)},
}


# -------------------------------------------------------------------------------------------------------------- points


def of_points(run: Run) -> dict[str, Any]:
    """What a flow loses to the exact density, and what its own sums to."""
    data: Any = open_table(run.config["recipe"]["data"])
    x = torch.from_numpy(data.split("test").x)
    judged = density.exact(run)
    mine = density.log_density(run, x, None, judged)
    mean, error = with_error((data.log_density(x) - mine).numpy())
    return {
        "nats": float(-mine.mean()),
        "above": mean,
        "error": error,
        "integral": density.of_plane(run, SQUARE, judged=judged).integral,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        **trained_for(run),
    }


def gaussian_of_points() -> dict[str, Any]:
    """The control."""
    data: Any = open_table({"name": "toy2d"})
    known, x = (torch.from_numpy(data.split(split).x).double() for split in ("train", "test"))
    mine = MultivariateNormal(known.mean(0), known.T.cov()).log_prob(x)
    mean, error = with_error((data.log_density(x) - mine).numpy())
    return {"nats": float(-mine.mean()), "above": mean, "error": error, "integral": 1.0}


def sheet(runs: Path) -> None:
    """Every flow of points, and the data's own density, in the same view."""
    data: Any = open_table({"name": "toy2d"})
    view = (-2.5, 2.5, -2.5, 2.5)
    own = data.log_density(density.grid(view, density.SIDE)).exp().view(density.SIDE, -1)
    cells = [(plane.density(own, view, 200), "the data")]
    for name, (recipe, *flags) in ROWS["points"].items():
        run = trained(recipe, runs, *flags, called=called("points", name))
        cells.append((plane.density(density.of_plane(run, view).p, view, 200), name))
    rows = [cells[i : i + 4] for i in range(0, len(cells), 4)]
    save_picture(SHEET, matrix(rows, [""] * len(rows), [""] * 4, "densities of eight Gaussians"))


# -------------------------------------------------------------------------------------------------------------- images


class Gaussian:
    """A density of images by their mean and covariance; of several classes, of each its own."""

    likelihood, mass = "exact", False

    def __init__(self, spec: Spec, laws: list[MultivariateNormal]) -> None:
        self.spec, self.laws = spec, laws

    def log_prob(self, x: Tensor, rng: Rng, samples: int = 1, **cond: Tensor) -> Tensor:
        """`(N,)` nats."""
        rows = torch.stack([law.log_prob(x.flatten(1).double()) for law in self.laws], 1)
        return rows.gather(1, cond["label"][:, None]).squeeze(1) if "label" in cond else rows.squeeze(1)


def gaussian(data: Any, classes: bool) -> tuple[Run, Gaussian]:
    """The control, and a run whose codecs and conditions it has: the noise adds 1/12 of a grey level squared to variances."""
    run = Run.build({"model": {"name": "planar", "layers": 1, "classes": classes}}, data.spec)
    split, levels = data.split("train"), run.spec.x.vocab
    known = split.batch(torch.arange(len(split)))
    rows = (run.codecs[0].encode(known)["x"].flatten(1).double() + 0.5) / levels
    groups = [rows[known["label"] == k] for k in known["label"].unique()] if classes else [rows]
    noise = torch.eye(rows.shape[1], dtype=torch.float64) / (12 * levels**2)
    return run, Gaussian(run.model.spec, [MultivariateNormal(x.mean(0), x.T.cov(correction=0) + noise) for x in groups])


def each(run: Run, items: Items, n: int, judged: Any = None) -> np.ndarray:
    """Bits per dimension of `n` held-out images `(n,)`, with the same noise whatever is judged."""
    metric, seed = Bpd.make({"draws": DRAWS}), base_seed(Rng.batch("evaluate", 0, "bpd", total=1), "bpd")
    parts = spread(len(items), n).split(64)
    made = [metric.bits(run, items.batch(part), item_rows(seed, part, run.model), judged)[0] for part in parts]
    return torch.cat(made).numpy()


def control(data: str, classes: bool = False) -> np.ndarray:
    """Bits of the Gaussian `(n,)`."""
    table = {"name": "digits", "image_size": 8, "unconditional": True} if data == "digits" else {"name": data}
    opened = open_table(table)
    run, judged = gaussian(opened, classes)
    return each(run, opened.split("test"), N[data], judged)


def of_images(data: str, run: Run) -> dict[str, Any]:
    """A flow's bits, their difference to the Gaussian's, what it took, and its round trip."""
    items, classes = open_table(run.config["recipe"]["data"]).split("test"), bool(run.model.spec.cond)
    bits, others = each(run, items, N[data]), control(data, classes)
    mean, error = with_error(bits)
    apart, apart_error = with_error(bits - others)
    jacobians = 2 if run.spec.x.size <= 64 else 1
    found = Roundtrip.make({"jacobians": jacobians})(
        run, items, Rng.batch("evaluate", 0, "roundtrip", total=1), N[data]
    )
    values = {one.name: one.value for one in found}
    return {
        "bits": mean,
        "error": error,
        "density": "of each class" if classes else "of all",
        "apart": apart,
        "apart_error": apart_error,
        "round trip": values["roundtrip"],
        "log-det": values.get("log-det"),
        "parameters": sum(p.numel() for p in run.model.parameters()),
        **trained_for(run),
    }


# ------------------------------------------------------------------------------------------------------------- running


def called(table: str, name: str) -> str:
    """The folder of a row's run: its recipe's name, or where flags change that, the row's and the data's."""
    recipe, *flags = ROWS[table][name]
    return "-".join([*name.replace(",", "").split(), table]) if flags else recipe


def controls(table: str) -> dict[str, dict[str, Any]]:
    """What every flow must beat."""
    if table == "points":
        return {"Gaussian": gaussian_of_points()}
    made = {"Gaussian": control(table)}
    if table == "fashion-mnist":
        made["Gaussian of each class"] = control(table, classes=True)
    return {
        name: {**dict(zip(("bits", "error"), with_error(bits), strict=True)), "density": "control"}
        for name, bits in made.items()
    }


def measured(table: str, names: list[str], runs: Path) -> None:
    """Every row that is not there yet, and the controls."""
    facts = stored()
    facts.setdefault(f"flows-{table}", {}).update(controls(table))
    files.atomic_json(FACTS, facts)
    for name in names or ROWS[table]:
        recipe, *flags = ROWS[table][name]
        run = trained(recipe, runs, *flags, called=called(table, name))
        measure = partial(of_points, run) if table == "points" else partial(of_images, table, run)
        print(name, once(f"flows-{table}", name, run, measure), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=(*ROWS, "sheet"))
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"), help="where runs are, and are made")
    given = parser.parse_args()
    if given.table == "sheet":
        sheet(given.runs)
    else:
        measured(given.table, given.rows, given.runs)


if __name__ == "__main__":
    main()
