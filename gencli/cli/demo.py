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
    ("a codec: images to 16 discrete codes and back", "train", ["vqvae", "--steps", "1200"]),
    ("its reconstructions, measured on held-out digits", "eval", ["reconstruction", "-c", "vqvae-digits"]),
    ("a prior over its codes", "train", ["gated-pixelcnn", "--codec", "vqvae-digits"]),
    ("digits from the codec with its prior", "sample", ["vqvae", "-n", "64"]),
    ("how good they are", "eval", ["fid", "-c", "gated-pixelcnn-digits"]),
    ("a denoiser", "train", ["ddpm"]),
    ("digits from the denoiser", "sample", ["ddim", "-n", "64", "--steps", "50", "-c", "ddpm-digits", "--trajectory"]),
    ("how good they are", "eval", ["fid", "-c", "ddpm-digits"]),
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
    from gencli.cli.main import app
    from gencli.training.session import make_folder

    given = Path(values.get("out", "gencli-demo"))
    folder = make_folder(given.parent, given.name)
    taken: list[list[Any]] = []
    measured: dict[str, Any] = {}
    with _inside(folder):
        for what, verb, args in STEPS:
            console.say(f"\n$ gencli {verb} {' '.join(args)}    # {what}")
            console.state.args = args
            began = time.perf_counter()
            app(args=[verb, *args], standalone_mode=False, prog_name="gencli")
            taken.append([f"gencli {verb} {' '.join(args)}", what, console.clock(time.perf_counter() - began)])
            for row in console.state.document.pop("results", []):
                measured[f"{args[-1]} {row['metric']}"] = row["value"]
        pictures = sorted(p for p in Path("samples").rglob("*") if p.name in ("grid.png", "trajectory.webp"))
    console.say("")
    console.table(taken, ["command", "what", "time"])
    console.table([[name, f"{value:.4g}"] for name, value in measured.items()], ["measured", "value"])
    for picture in pictures:
        console.show(str(folder / picture))
    console.document(steps=taken, measured=measured, pictures=[str(folder / p) for p in pictures])
    console.result(folder)
    console.following("gencli train ddpm --data ./my-photos")
