"""What the cases are made of: small runs and the files that gencli writes of them, made once and copied."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from random import Random

from PIL import Image
from saved import ddpm, saved
from tiny import table, toml, trained

from gencli import registry
from gencli.bundle import Run

TRAIN = {"steps": 2, "save_every": 1, "sample_every": 1000, "batch_size": 4, "keep": 2}


def stocked(folder: Path) -> Path:
    """Fill a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    trained(folder / "made", table("vae", **TRAIN)).rename(folder / "vae")
    saved(folder / "made", ddpm()).rename(folder / "ddpm")
    for kind in ("vae", "ddpm"):
        toml(folder / f"{kind}.toml", {**(ddpm() if kind == "ddpm" else table("vae")), "train": TRAIN})
    for name, run in (("pt", "vae"), ("safetensors", "vae"), ("diffusers", "ddpm")):
        converter = registry.load("converters", name).make({})
        converter.export(Run.load(folder / run), folder / f"file{converter.suffix}", False)
    return folder


@dataclass(frozen=True)
class Stock:
    """A folder that `stocked` filled."""

    folder: Path

    def run(self, cwd: Path, kind: str = "vae") -> Path:
        """A copy of a run, called `r`, where the command line finds it."""
        target = cwd / "checkpoints" / "r"
        shutil.copytree(self.folder / kind, target)
        return target

    def recipe(self, cwd: Path, kind: str = "vae") -> str:
        """A copy of its recipe."""
        shutil.copy(self.folder / f"{kind}.toml", cwd / "t.toml")
        return "t.toml"

    def bytes(self, name: str) -> bytes:
        """A file of it."""
        return (self.folder / name).read_bytes()


def photo(random: Random, mode: str = "RGB", size: tuple[int, int] = (16, 16)) -> Image.Image:
    """A picture of noise."""
    planes = {"RGB": 3, "RGBA": 4, "CMYK": 4, "LA": 2, "YCbCr": 3}.get(mode, 1)
    if mode == "1":
        return Image.frombytes("L", size, random.randbytes(size[0] * size[1])).convert("1")
    if mode in ("I", "F"):
        return Image.frombytes("L", size, random.randbytes(size[0] * size[1])).convert(mode)
    each = planes * (2 if mode == "I;16" else 1)
    return Image.frombytes(mode, size, random.randbytes(size[0] * size[1] * each))


def damaged(random: Random, data: bytes) -> bytes:
    """Cut short, with bytes changed, taken out, put in or repeated."""
    made = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(made) + 1)
        way = random.randrange(6)
        if way == 0:
            del made[at:]
        elif way == 1 and at < len(made):
            made[at] ^= 1 << random.randrange(8)
        elif way == 2:
            made[at : at + 4] = random.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", random.randbytes(4)))
        elif way == 3:
            del made[at : at + random.randrange(1, 64)]
        elif way == 4:
            made[at:at] = random.randbytes(random.randrange(1, 64))
        else:
            made[at:at] = made[at : at + 64]
    return bytes(made)
