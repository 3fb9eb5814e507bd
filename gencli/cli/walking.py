"""`gencli sample … --between A,B`, `--traverse A`, `--resample A`, `--latents`, `--density`: pictures of what a model knows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli import files
from gencli.cli import console
from gencli.cli.options import Flag
from gencli.errors import GencliError

if TYPE_CHECKING:
    from torch import Tensor

    from gencli.bundle import Run

STEPS, POINTS = 9, 2000
_ASK = {
    "between": "--between",
    "traverse": "--traverse",
    "resample": "--resample",
    "latents": "--latents",
    "density": "--density",
}
_NAMES = {"between": "interpolation", "traverse": "traversal", "resample": "resampled"}

FLAGS = [
    Flag(
        "between",
        ("--between",),
        str,
        "images on the way between two seeds or images, straight and around: 3,7 or test:3,7 or a.png,b.png",
        "Latent",
        metavar="A,B",
    ),
    Flag(
        "traverse",
        ("--traverse",),
        str,
        "move each number of the latent of a seed or image, those that carry most first: 3 or test:3 or a.png",
        "Latent",
        metavar="A",
    ),
    Flag(
        "resample",
        ("--resample",),
        str,
        "of a multi-scale flow: draw the finer levels of a seed's or image's latent anew: 3 or test:3 or a.png",
        "Latent",
        metavar="A",
    ),
    Flag(
        "density",
        ("--density",),
        bool,
        "of points in the plane: draw the model's exact density beside samples, and say what it integrates to",
        "Output",
        default=False,
    ),
    Flag(
        "latents",
        ("--latents",),
        bool,
        "draw where items lie by class, beside the prior, and what each number of the latent carries",
        "Latent",
        default=False,
    ),
]


def asked(values: dict[str, Any]) -> str:
    """Which of them was asked for, empty without; two are refused."""
    given = [key for key in _ASK if values.get(key)]
    if len(given) > 1:
        raise GencliError(f"{_ASK[given[0]]} does not go with {_ASK[given[1]]}", "give one of them at a time")
    return given[0] if given else ""


def show(
    what: str,
    run: Run,
    sampler: Any,
    values: dict[str, Any],
    classes: list[int] | None,
    folder_of: Callable[[str], Path],
) -> None:
    """Draw and write."""
    from gencli.evaluation import walks

    if what == "density":
        return _density(run, sampler, values, classes, folder_of)
    walks.check(run)
    if what == "latents":
        return _latents(run, folder_of)
    steps = values.get("n", STEPS)
    if steps < 2:
        raise GencliError(f"-n is {steps}", "give 2 or more images on the way")
    heat = float(getattr(sampler.config, "temperature", 1.0))
    ends = walks.ends(run, values[what], 2 if what == "between" else 1, _ASK[what], classes, heat)
    for note in ends.notes:
        console.say(f"note: {note}")
    facts: dict[str, Any] = {}
    if what == "between":
        x, names = walks.between(run, ends, steps), ["linear", "spherical"]
        title = f"from {ends.names[0]} to {ends.names[1]}"
    elif what == "resample":
        x = walks.resampled(run, ends, steps, heat)
        names = [f"levels 0–{k} new" if k else "level 0 new" for k in range(len(x))]
        title = f"the latent of {ends.names[0]}, its levels drawn anew, the finest first"
    else:
        made = walks.traverse(run, ends, steps, _held_out(run))
        x, facts = made.x, {"numbers": made.numbers, "nats": made.nats}
        names = [f"z{i}" for i in made.numbers]
        if made.nats is not None:
            names = [f"{name}  {nats:.2f}" for name, nats in zip(names, made.nats, strict=True)]
        carried = "and what each carries in nats" if made.nats is not None else "most change first"
        title = f"numbers of the latent of {ends.names[0]}, {carried}: {walks.REACH} deviations down and up"
    folder = folder_of("-".join([what, *(Path(name).stem.replace(":", "-") for name in ends.names)]))
    walk = {"walk": {"kind": what, "ends": list(ends.names), "steps": steps, **facts}}
    _write(run, sampler, folder, _NAMES[what], x, names, title, walk)
    if values["trajectory"]:
        from gencli.report.kinds.image import save_animation

        there = list(range(steps))
        frames = [x[:, t] for t in [*there, *reversed(there[1:-1])]]
        save_animation(folder / "trajectory.webp", frames, columns=1 if what == "between" else None)
    console.document(run=run.name, walk=what, images=x.shape[0] * x.shape[1])
    console.result(folder)
    console.following(f"gencli report {run.name}")


def _held_out(run: Run) -> Any:
    """Items of the run's data, None where they are not on this machine."""
    from gencli.data import open_table

    data = open_table(run.config["recipe"]["data"])
    return data.split("test") if data.here() and len(data.split("test")) else None


def _write(
    run: Run, sampler: Any, folder: Path, name: str, x: Tensor, rows: list[str], title: str, facts: dict[str, Any]
) -> None:
    """The picture, the single images, and the receipt."""
    from gencli.report.kinds import image
    from gencli.report.kinds._pictures import matrix, save_picture

    cells = [[(image.grid(one[None]), "") for one in row] for row in x]
    columns = (
        [f"{t / (x.shape[1] - 1):.2g}" for t in range(x.shape[1])] if name == "interpolation" else [""] * x.shape[1]
    )
    save_picture(folder / f"{name}.png", matrix(cells, rows, columns, title))
    numbered = [f"{row:02d}-{t:02d}" for row in range(x.shape[0]) for t in range(x.shape[1])]
    image.save_items(folder, x.flatten(0, 1), numbered)
    _receipt(run, sampler, folder, facts, [{"file": f"{number}.png"} for number in numbered])


def _receipt(run: Run, sampler: Any, folder: Path, facts: dict[str, Any], items: list[dict[str, Any]]) -> None:
    from gencli import __version__
    from gencli.evaluation.generate import Request, origin, resolved
    from gencli.evaluation.receipts import of_making

    told = origin(run, resolved(run, Request([0], {}, sampler)))
    document = {
        "schema": 1,
        "gencli": __version__,
        **told,
        **facts,
        **of_making(run),
        "file_codec": "PNG",
        "items": items,
    }
    files.atomic_write(folder / "samples.json", (json.dumps(document, indent=1) + "\n").encode())


def _latents(run: Run, folder_of: Callable[[str], Path]) -> None:
    from gencli.report import latents

    items = _held_out(run)
    if items is None:
        raise GencliError(f"--latents needs the data of run {run.name}, which are not here", "see `gencli env`")
    seen = latents.of_items(run, items)
    folder = folder_of("latents")
    files.atomic_write(folder / "latents.png", latents.picture(seen))
    _receipt(run, run.sampler(), folder, {"walk": {"kind": "latents", "items": len(seen.means)}}, [])
    console.document(run=run.name, walk="latents", images=0)
    console.result(folder)
    console.following(f"gencli report {run.name}")


def _density(
    run: Run,
    sampler: Any,
    values: dict[str, Any],
    classes: list[int] | None,
    folder_of: Callable[[str], Path],
) -> None:
    """Samples, the density in their view, and what it integrates to over a square twice as wide."""
    from gencli.evaluation import density
    from gencli.evaluation.conditions import conditions_for
    from gencli.evaluation.generate import Request, resolved, samples
    from gencli.report.kinds import points
    from gencli.report.kinds._pictures import beside, save_picture, titled

    judged = density.exact(run)
    first, count = values.get("seed", 0), values.get("n", POINTS)
    if count < 2:
        raise GencliError(f"-n is {count}", "give 2 or more points")
    seeds = list(range(first, first + count))
    if (heat := getattr(sampler.config, "temperature", 1.0)) != 1:
        console.say(f"note: the samples are of temperature {heat:g}, the density is of temperature 1")
    request = Request(seeds, conditions_for(run, seeds, classes), sampler, guidance=1.0)
    drawn = samples(run, resolved(run, request))
    view = points.view(drawn)
    whole = density.of_plane(run, points.wider(view, 2), classes, judged=judged)
    quarter = len(whole.p) // 4
    near = whole.p[quarter:-quarter, quarter:-quarter]
    folder = folder_of("density")
    pictures = [titled(points.grid(drawn, view), "samples"), titled(points.density(near, view), "density")]
    save_picture(folder / "density.png", beside(pictures))
    left, right, bottom, top = whole.extent
    facts = {"integral": whole.integral, "square": whole.extent, "cells": whole.p.numel(), "lost": whole.lost}
    items = [{"file": Path(name).name} for name in points.save_items(folder, drawn, [f"{i:05d}" for i in seeds])]
    _receipt(run, sampler, folder, {"density": facts}, items)
    console.say(
        f"density: {whole.integral:.5f} over [{left:.3g}, {right:.3g}] × [{bottom:.3g}, {top:.3g}] in "
        f"{whole.p.numel():,} cells"
    )
    if whole.lost:
        console.say(
            f"note: {whole.lost:,} cells are beyond what numbers hold on the way through the model; they count as zero"
        )
    console.document(run=run.name, density=facts)
    console.result(folder)
    console.following(f"gencli eval wasserstein -c {run.name}")
