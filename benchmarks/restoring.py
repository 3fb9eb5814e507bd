"""Inverse problems on held-out digits: every operator with every solver, against the best linear estimate.

    python -m benchmarks.restoring [--run RUN] [OPERATOR:SOLVER …]

Of 16 held-out digits at 16×16, measured with noise of deviation 0.05, 8 restorations each by the shipped `ddpm-digits` without
classes: PSNR of one and of the mean of the 8, the residual over σ√m (1 for the truth), and the share that a support vector
machine sees as the original's class. The last three solvers are classical priors, which ask no model. Two controls: the
posterior mean of a Gaussian with the mean and covariance of the training images (the Wiener filter), and bicubic enlargement
where the means of blocks are measured. Rows stand in `docs/quality.json`, a sheet of one digit by every pair in
`docs/pictures/restored.png`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import judge
from benchmarks.quality import FACTS, once
from gencli import home
from gencli.bundle import Run
from gencli.core import Rng
from gencli.data import open_table
from gencli.evaluation.generate import Request, resolved, samples
from gencli.evaluation.inputs import Inputs
from gencli.evaluation.restoring import Restoration
from gencli.metrics.reconstruction import psnr
from gencli.operators._base import LinearOperator

INPUTS, EACH, NOISE = 16, 8, 0.05
ENLARGED = 6  # pixels of the sheet for one
OPERATORS: dict[str, dict[str, Any]] = {
    "inpaint": {"name": "inpaint", "share": 0.25},
    "super-resolution": {"name": "super-resolution", "factor": 4},
    "deblur": {"name": "deblur", "width": 1.5},
    "compressed-sensing": {"name": "compressed-sensing", "share": 0.25},
    "phase-retrieval": {"name": "phase-retrieval"},
}
SOLVERS: dict[str, dict[str, Any]] = {
    "ddrm": {"steps": 20},
    "posterior": {"steps": 100},
    "dps": {"steps": 100},
    "pnp": {},
    "red": {},
    **{prior: {"name": "classical", "prior": prior} for prior in ("tikhonov", "wavelet", "tv")},
}
PICTURE = FACTS.parent / "pictures" / "restored.png"


def pairs() -> list[str]:
    """What fits what: an operator that is not linear has one solver."""
    return [
        f"{operator}:{solver}"
        for operator in OPERATORS
        for solver in SOLVERS
        if operator != "phase-retrieval" or solver == "dps"
    ]


def restored(run: Run, inputs: Inputs, operator: str, solver: str) -> tuple[Restoration, Tensor]:
    """The measurements, and `INPUTS × EACH` restorations."""
    table = {**SOLVERS[solver], "operator": OPERATORS[operator], "noise": NOISE}
    sampler = run.sampler(table.pop("name", solver), table)
    made = Restoration.of(run, sampler, inputs, EACH)
    seeds = list(range(EACH)) * len(inputs)
    return made, samples(run, resolved(run, Request(seeds, made.rows({}), sampler, micro=128)))


def wiener(made: Restoration, run: Run) -> Tensor:
    """The posterior mean under a Gaussian with the training images' mean and covariance."""
    operator = made.operator
    assert isinstance(operator, LinearOperator)
    train = open_table(run.config["recipe"]["data"]).split("train")
    x = run.encode(train.batch(torch.arange(len(train))), Rng.rows([0] * len(train)))["x"].double().flatten(1)
    mean, covariance = x.mean(0), torch.cov(x.T)
    unit = torch.eye(x.shape[1], dtype=torch.float64).view(-1, *operator.shape)
    matrix = operator.measure(unit).flatten(1).T
    noisy = matrix @ covariance @ matrix.T + NOISE**2 * torch.eye(len(matrix), dtype=torch.float64)
    left = made.y.flatten(1) - mean @ matrix.T
    found = mean + torch.linalg.solve(noisy, left.T).T @ matrix @ covariance
    return run.decode({"x": found.view(-1, *operator.shape).clamp(-1, 1).float()})["x"]


def bicubic(made: Restoration, run: Run) -> Tensor:
    """The means of blocks, enlarged."""
    wide = F.interpolate(made.y, made.operator.shape[1:], mode="bicubic", align_corners=False)
    return run.decode({"x": wide.clamp(-1, 1).float()})["x"]


def row(run: Run, inputs: Inputs, labels: Tensor, operator: str, solver: str) -> dict[str, Any]:
    """A pair's figures."""
    made, images = restored(run, inputs, operator, solver)
    found = made.scores(run, images)
    kept = judge.judge(images, labels.repeat_interleave(EACH), "digits")
    told = {"psnr": found["psnr"], "mean_psnr": found["mean_psnr"], "residual": found["residual"], "class_kept": kept}
    if isinstance(made.operator, LinearOperator):
        told["wiener_psnr"] = float(psnr(inputs.x, wiener(made, run)).mean())
    if operator == "super-resolution":
        told["bicubic_psnr"] = float(psnr(inputs.x, bicubic(made, run)).mean())
    return told


def sheet(run: Run, inputs: Inputs) -> None:
    """One digit: a row for each operator, the original, what was measured, and what each solver makes of it."""
    from gencli.report.kinds.image import contact_sheet, save_picture

    one = Inputs(inputs.x[:1], inputs.names[:1])
    images, captions = [], []
    for operator in OPERATORS:
        solvers = [pair.split(":")[1] for pair in pairs() if pair.startswith(f"{operator}:")]
        parts = [restored(run, one, operator, solver) for solver in solvers]
        shown = [one.x[0], parts[0][0].seen(run)[0], *(made[0] for _, made in parts)]
        blank = [torch.zeros_like(one.x[0])] * (2 + len(SOLVERS) - len(shown))
        images += [*shown, *blank]
        captions += ["original", operator, *solvers, *([""] * len(blank))]
    large = torch.stack(images).repeat_interleave(ENLARGED, 2).repeat_interleave(ENLARGED, 3)
    save_picture(PICTURE, contact_sheet(large, captions, columns=2 + len(SOLVERS)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="*", metavar="OPERATOR:SOLVER")
    parser.add_argument("--run", type=Path, default=home.shipped_runs() / "ddpm-digits", help="a denoiser of digits")
    given = parser.parse_args()
    run = Run.load(given.run)
    held = open_table(run.config["recipe"]["data"]).split("test").batch(torch.arange(INPUTS))
    inputs = Inputs(held["x"], tuple(f"test:{i}" for i in range(INPUTS)))
    for pair in given.pairs or pairs():
        operator, solver = pair.split(":")
        found = once("restoring", pair, run, lambda o=operator, s=solver: row(run, inputs, held["label"], o, s))
        print(pair, found, flush=True)
    if not given.pairs:
        sheet(run, inputs)


if __name__ == "__main__":
    main()
