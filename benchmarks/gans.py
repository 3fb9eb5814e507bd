"""GANs of images by their laptop recipes, beside the controls that they must beat; and what truncation does.

    python -m benchmarks.gans digits         [--runs DIR] [ROW …]     16×16, against all 1,797 digits
    python -m benchmarks.gans fashion-mnist  [--runs DIR] [ROW …]     28×28, against 2,048 held-out images
    python -m benchmarks.gans truncation     [--runs DIR]             ψ of stylegan2-ada, three draws of 2,048, as a picture

Runs are looked for in DIR (`checkpoints`) and trained where they are missing; a run that ended early stays as it is. Rows stand
in `docs/quality.json`. Of as many samples as there are references: FID, precision and recall (k = 3) in the bundled features;
the entropy in nats of the classes that a network or a support vector machine sees which was no part of training (ten classes
alike: 2.30), and the shares of the least and the most frequent. Controls: one Gaussian with the mean and full covariance of the
training images, and the output of an untrained network. `beats`: a FID below both, an entropy of 2.0 and a recall of 0.2.
"""

from __future__ import annotations

import argparse
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import judge
from benchmarks.pixels import trained_for
from benchmarks.quality import FACTS, drawn, once, stored, trained
from gencli import files
from gencli.bundle import Run
from gencli.metrics._features import extractor
from gencli.metrics.fid import distance
from gencli.metrics.precision_recall import precision_recall
from gencli.samplers.prior import Prior

N = {"digits": 1797, "fashion-mnist": 2048}
FASHION = ("--data", "fashion-mnist", "--unconditional")
ROWS: dict[str, dict[str, tuple[str, ...]]] = {
    "digits": {name: (name,) for name in ("dcgan", "wgan-gp", "sngan", "progan", "stylegan2-ada")},
    "fashion-mnist": {
        "dcgan": ("dcgan", *FASHION),
        "wgan-gp": ("wgan-gp-fashion-mnist",),
        "sngan": ("sngan", *FASHION),
        "progan": ("progan", *FASHION),
        "stylegan2-ada": ("stylegan2-ada-fashion-mnist",),
    },
}
LEAST = {"entropy": 2.0, "recall": 0.2}
PSI, DRAWS, DRAWN = (1.0, 0.7, 0.5, 0.3), 3, 2048
PICTURE = FACTS.parent / "pictures" / "truncation.png"


@cache
def reference(data: str) -> Tensor:
    """The real images, uint8."""
    images = judge.real(data, "test")[0]  # type: ignore[arg-type]
    if data == "digits":
        return torch.cat([judge.real("digits", "train")[0], images])
    return images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: N[data]]]


@cache
def known(data: str) -> Any:
    """Their features."""
    return extractor("gencli").extract(reference(data).split(256)).x


def seen(images: Tensor, data: str) -> dict[str, Any]:
    """What is said of images."""
    made = extractor("gencli").extract(images.split(256)).x
    precision, recall = precision_recall(known(data), made)
    share = torch.bincount(judge.classify(images, data), minlength=10).double() / len(images)  # type: ignore[arg-type]
    return {
        "fid": distance(known(data), made),
        "precision": precision,
        "recall": recall,
        "entropy": float(torch.special.entr(share).sum()),
        "least": float(share.min()),
        "most": float(share.max()),
    }


def controls(data: str) -> dict[str, dict[str, Any]]:
    """What knows two moments, and what knows nothing."""
    made = {"gaussian": judge.gaussian, "untrained": judge.untrained}
    return {name: seen(draw(data, N[data]), data) for name, draw in made.items()}  # type: ignore[arg-type]


def row(data: str, run: Run) -> dict[str, Any]:
    """A run's figures, and whether they beat the controls'."""
    found = seen(drawn(run, N[data])[0], data)
    others = [stored()[f"gans-{data}"][name]["fid"] for name in ("gaussian", "untrained")]
    beats = found["fid"] < min(others) and all(found[key] >= least for key, least in LEAST.items())
    return {**found, "beats": beats, "parameters": sum(p.numel() for p in run.model.parameters()), **trained_for(run)}


def measured(data: str, names: list[str], runs: Path) -> None:
    """Every row that is not there yet, and the controls."""
    facts = stored()
    if "gaussian" not in facts.get(f"gans-{data}", {}):
        facts.setdefault(f"gans-{data}", {}).update(controls(data))
        files.atomic_json(FACTS, facts)
    for name in names or ROWS[data]:
        recipe, *flags = ROWS[data][name]
        run = trained(recipe, runs, *flags, called=name if data == "digits" else f"{name}-{data}")
        print(name, once(f"gans-{data}", name, run, partial(row, data, run)), flush=True)


def truncation(runs: Path) -> None:
    """Precision and recall by ψ, a line for each draw."""
    run = trained("stylegan2-ada", runs)
    figure = Figure(figsize=(7, 3), layout="constrained")
    panels = {name: figure.add_subplot(1, 2, i) for i, name in enumerate(("precision", "recall"), 1)}
    found: dict[str, Any] = {}
    for draw in range(DRAWS):
        said = [
            seen(drawn(run, DRAWN, draw * DRAWN, sampler=Prior.make({"truncation": psi}))[0], "digits") for psi in PSI
        ]
        for name, axes in panels.items():
            axes.plot(PSI, [one[name] for one in said], marker="o", label=f"draw {draw}")
            axes.set(xlabel="ψ", ylabel=name)
        found |= {f"{draw}, ψ = {psi}": one for psi, one in zip(PSI, said, strict=True)}
        print(draw, [(round(one["precision"], 3), round(one["recall"], 3)) for one in said], flush=True)
    files.atomic_json(FACTS, {**stored(), "gans-truncation": found})
    figure.savefig(PICTURE, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=(*ROWS, "truncation"))
    parser.add_argument("rows", nargs="*", metavar="ROW")
    parser.add_argument("--runs", type=Path, default=Path("checkpoints"), help="where runs are, and are made")
    given = parser.parse_args()
    if given.table == "truncation":
        truncation(given.runs)
    else:
        measured(given.table, given.rows, given.runs)


if __name__ == "__main__":
    main()
