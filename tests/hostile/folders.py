"""Folders that are strange: links in circles, pipes and devices called like images, names that no terminal should see."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random

from fuzzing import Case, Maker

from hostile.stock import Stock, photo

NAMES = (
    *(
        "a b.png",
        "a\nb.png",
        "a\tb.png",
        "\x1b[31mred.png",
        "é\u202ea.png",
        "e\u0301.png",
        "\udcff.png",
        "-n.png",
        "--help.png",
    ),
    *(
        " .png",
        "..png",
        "a\\b.png",
        "a:b.png",
        "*.png",
        "'a'.png",
        '"$(touch canary)".png',
        "`touch canary`.png",
        "%s%n.png",
        "x" * 240 + ".png",
    ),
    *("con.png", "\x7f.png", "日本語.png", "a.png\n", "a;touch canary;.png", "{0}.png", "\r.png", "a,b.png"),
)


def _names(random: Random, folder: Path) -> None:
    for name in random.sample(NAMES, random.choice((1, 4, 12))):
        photo(random).save(folder / name, "PNG")


def _circle(random: Random, folder: Path) -> None:
    (folder / "a").mkdir()
    photo(random).save(folder / "a" / "1.png")
    for name, target in (
        ("a/up", ".."),
        ("a/self", "."),
        ("loop", "loop"),
        ("there", "back"),
        ("back", "there"),
        ("x.png", "x.png"),
    ):
        (folder / name).symlink_to(target)


def _dangling(random: Random, folder: Path) -> None:
    (folder / "a.png").symlink_to("nowhere.png")
    (folder / "b.png").symlink_to("/nonexistent/x.png")
    (folder / "labels.csv").symlink_to("none.csv")


def _pipes(random: Random, folder: Path) -> None:
    os.mkfifo(folder / random.choice(("a.png", "labels.csv", "samples.json", "points.npy", "config.json", "a.txt")))
    if random.random() < 0.5:
        photo(random).save(folder / "1.png")


def _devices(random: Random, folder: Path) -> None:
    name = random.choice(("a.png", "labels.csv", "samples.json", "points.npy", "config.json"))
    (folder / name).symlink_to(
        random.choice(("/dev/zero", "/dev/urandom", "/dev/null", "/proc/self/mem", "/proc/self/environ"))
    )
    if random.random() < 0.5:
        photo(random).save(folder / "1.png")


def _sockets(random: Random, folder: Path) -> None:
    before = Path.cwd()
    os.chdir(folder)  # a socket's path may be short only
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("a.png")
    finally:
        os.chdir(before)


def _kinds(random: Random, folder: Path) -> None:
    """Folders called like files."""
    for name in ("a.png", "labels.csv", "samples.json", "points.npy", "config.json", "z.zip"):
        if random.random() < 0.6:
            (folder / name).mkdir()


def _deep(random: Random, folder: Path) -> None:
    here = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(random.choice((50, 400))):  # the longer one is beyond what a path may be
            os.mkdir("d" * 20, dir_fd=here)
            there = os.open("d" * 20, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = there
        os.close(os.open("a.png", os.O_WRONLY | os.O_CREAT, dir_fd=here))
    finally:
        os.close(here)


def _many(random: Random, folder: Path) -> None:
    for i in range(random.choice((300, 1500))):
        (folder / f"{i}{random.choice(('', '.png', '.txt'))}").touch()


def _closed(random: Random, folder: Path) -> None:
    (folder / "shut").mkdir()
    photo(random).save(folder / "shut" / "1.png")
    photo(random).save(folder / "2.png")
    (folder / "2.png").chmod(0)
    (folder / "shut").chmod(0)


def _empty(random: Random, folder: Path) -> None:
    for name in ("train", "test", "A", "B", ".hidden", "__MACOSX", "nested"):
        (folder / name).mkdir()
    if random.random() < 0.5:
        photo(random).save(folder / random.choice(("train", ".hidden", "A")) / "a.png")


def _table(random: Random, folder: Path) -> None:
    from hostile.archives import TABLES

    photo(random).save(folder / "a.png")
    (folder / "labels.csv").write_text(random.choice(TABLES), encoding=random.choice(("utf-8", "utf-8", "utf-16")))


def _sparse(random: Random, folder: Path) -> None:
    """A file that says it is enormous and takes no room."""
    with (folder / random.choice(("a.png", "labels.csv", "samples.json", "points.npy", "config.json"))).open(
        "wb"
    ) as file:
        file.truncate(random.choice((2**29 - 1, 2**31, 2**40)))


WAYS: dict[str, Callable[[Random, Path], None]] = {
    **{
        "names": _names,
        "circle": _circle,
        "dangling": _dangling,
        "pipes": _pipes,
        "devices": _devices,
        "sockets": _sockets,
    },
    **{
        "kinds": _kinds,
        "deep": _deep,
        "many": _many,
        "closed": _closed,
        "empty": _empty,
        "labels.csv": _table,
        "sparse": _sparse,
    },
}
CALLED = (
    "photos",
    "my photos",
    "a\nb",
    "\x1b[31m",
    "é\u202e",
    "\udcff",
    "-n",
    "--data",
    "digits",
    "a,b",
    "x" * 200,
    "p.zip",
    "p.npz",
    "p.toml",
)
SPECIAL = (
    "model.safetensors",
    "config.json",
    "metrics.jsonl",
    "evaluations.jsonl",
    "train",
    "samples.json",
    "compare.json",
)


def makers(stock: Stock) -> dict[str, Maker]:
    """Folders of images, and folders of runs."""

    def images(random: Random, cwd: Path) -> Case:
        folder = cwd / random.choice(("photos", *CALLED))
        folder.mkdir()
        what = random.choice(list(WAYS))
        WAYS[what](random, folder)
        stock.recipe(cwd)
        name = f"./{folder.name}"
        check = ("data", "check", name, "--image-size", "8")
        options: list[tuple[str, ...]] = [
            check,
            check,
            (*check, "--group-by", random.choice(("folder", "prefix", "csv")), "--preview"),
        ]
        options += [
            ("train", "t.toml", "--data", name, "--steps", "1", "--batch-size", "1"),
            ("sample", name, "-n", "1"),
        ]
        options += [
            ("eval", "fid", "--samples", name, "--data", "digits", "--features", "random"),
            ("report", name),
            ("info", name),
        ]
        options += [
            ("sample", "sdedit", "-c", "r", "--input", name, "-n", "1", "--fit", "crop"),
            ("convert", name, "--from", "diffusers"),
        ]
        options += [("runs", "rm", name, "--yes"), ("replay", name)]
        args = random.choice(options)
        if "r" in args:
            stock.run(cwd, "ddpm")
        return Case(args, True, f"folder {folder.name!r}: {what}", "rm" in args)

    def runs(random: Random, cwd: Path) -> Case:
        folder = stock.run(cwd)
        if random.random() < 0.4:
            folder = folder.rename(folder.with_name(random.choice(CALLED)))
        name = random.choice(SPECIAL)
        path = folder / name
        if path.exists() and not path.is_dir():
            path.unlink()
        way = random.randrange(6)
        if way == 0 and not path.exists():
            path.mkdir()
        elif way == 1 and not path.exists():
            os.mkfifo(path)
        elif way == 2 and not path.exists():
            path.symlink_to(random.choice(("/dev/zero", path.name, "/dev/null", "..", "/etc/passwd", "/proc/self/mem")))
        elif way == 3 and not path.exists():
            path.write_bytes(b"")
        elif way == 4:
            (folder / "codec").symlink_to(".")
            (folder / "sources").symlink_to("..")
        elif way == 5 and not path.exists():
            with path.open("wb") as file:
                file.truncate(random.choice((3, 2**31, 2**40)))
        called = random.choice((folder.name, f"checkpoints/{folder.name}"))
        options = [("sample", called, "-n", "1"), ("info", called), ("report", called), ("list", "runs"), ("runs",)]
        options += [
            ("convert", called, "--to", "pt"),
            ("eval", "fid", "-c", called, "-n", "16", "--features", "random"),
        ]
        options += [("runs", "slim", called, "--yes"), ("runs", "rm", called, "--yes"), ("sample", "vae", "-n", "1")]
        options += [
            ("train", stock.recipe(cwd), "--resume", called, "--steps", "3"),
            ("train", "t.toml", "--from", called, "--steps", "1"),
        ]
        args = random.choice(options)
        adds = args[0] == "eval" and name == "evaluations.jsonl"  # a line, which is what it is for
        changes = adds or bool({"--resume", "rm", "slim"} & set(args))
        return Case(args, True, f"run {folder.name!r}: {name}, way {way}", changes)

    return {"folder-images": images, "folder-run": runs}
