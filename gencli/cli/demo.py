"""`gencli demo`: train, sample and evaluate on data that comes with gencli, in a few minutes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gencli.cli import console
from gencli.cli.options import Flag, build


def command() -> Any:
    """The `demo` command."""
    out = Flag("out", ("--out",), str, "folder for everything the demo makes", shown="gencli-demo")
    return build("demo", "Train, sample and evaluate on digits: a codec with a prior, and a denoiser.", [out], run)


STEPS: tuple[tuple[str, str, list[str]], ...] = (
    ("a codec: each digit as 16 codes", "train", ["vqvae"]),
    ("its reconstructions of held-out digits", "eval", ["reconstruction", "-c", "vqvae-digits"]),
    ("a prior over the codes", "train", ["gated-pixelcnn", "--codec", "vqvae-digits"]),
    ("digits from codec and prior", "sample", ["vqvae", "-n", "64"]),
    ("how good they are", "eval", ["fid", "-c", "gated-pixelcnn-digits"]),
    ("a denoiser", "train", ["ddpm"]),
    ("digits from the denoiser", "sample", ["ddim", "-n", "64", "--steps", "50", "-c", "ddpm-digits", "--trajectory"]),
    ("how good they are", "eval", ["fid", "-c", "ddpm-digits", "--steps", "50"]),
)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def run(values: dict[str, Any]) -> None:
    """Run the steps one after another, then show what they made."""
    from gencli.training.session import make_folder

    given = Path(values.get("out", "gencli-demo"))
    folder = make_folder(given.parent, given.name)
    taken: list[list[str]] = []
    measured: list[list[str]] = []
    with _inside(folder):
        for what, verb, args in STEPS:
            seconds, results = _step(what, verb, args)
            taken.append([f"gencli {verb} {' '.join(args)}", what, console.clock(seconds)])
            measured += [[row["receipt"]["run"], row["metric"], f"{row['value']:.4g} {row['unit']}"] for row in results]
        grids = sorted(Path("samples").rglob("grid.png"))
        if grids:
            _overview(grids)
    console.say("")
    console.table(taken, ["command", "what", "time"])
    console.table(measured, ["run", "metric", "value"])
    pictures = [folder / path for path in (*grids, *([Path("demo.png")] if grids else []))]
    for picture in pictures:
        console.show(str(picture))
    console.document(steps=taken, measured=measured, pictures=[str(picture) for picture in pictures])
    console.result(folder)
    console.following("gencli train ddpm --data ./my-photos")


def _step(what: str, verb: str, args: list[str]) -> tuple[float, list[dict[str, Any]]]:
    """One command of the demo: its seconds, and what it measured."""
    import typer

    from gencli.cli.main import app

    console.say(f"\n$ gencli {verb} {' '.join(args)}    # {what}")
    console.state.args, console.state.inner = args, True
    began = time.perf_counter()
    try:
        code = app(args=[verb, *args], standalone_mode=False, prog_name="gencli")
    finally:
        console.state.inner = False
    if code:
        raise typer.Exit(code)
    return time.perf_counter() - began, console.state.document.pop("results", [])


def _overview(grids: list[Path]) -> None:
    """All grids side by side in one picture."""
    from PIL import Image

    from gencli.report.kinds._pictures import beside, save_picture

    save_picture("demo.png", beside([Image.open(path) for path in grids]))
