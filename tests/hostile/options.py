"""Every option of every command with values that are empty, negative, enormous or malformed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import Case, Maker

from hostile.stock import Stock, photo

NUMBERS = (
    *(
        "0",
        "-1",
        "1",
        "2",
        "-0",
        "1.5",
        "-0.5",
        "1e400",
        "-1e400",
        "nan",
        "inf",
        "-inf",
        "1e-320",
        "9" * 30,
        "-" + "9" * 30,
        "9" * 5000,
    ),
    *(
        "2147483648",
        "9223372036854775808",
        "0x10",
        "1_000",
        "１２",
        "²",
        "1,2",
        " 3 ",
        "+4",
        "--5",
        "1e3",
        "true",
        "None",
    ),
)
WORDS = (
    *(
        "",
        " ",
        "\n",
        "a\nb",
        "\x1b[31mred",
        "é\u202e",
        "\udcff",
        "x" * 5000,
        ".",
        "..",
        "/",
        "../..",
        "/dev/null",
        "/dev/zero",
        "/proc/self/mem",
    ),
    *(
        ",",
        ",,,",
        "a,b",
        "=",
        "a=b",
        "-",
        "--",
        "-n",
        "*",
        "(",
        "[",
        "^(a+)+$",
        "%s",
        "{0}",
        "$(touch canary)",
        "r",
        "r.toml",
        "./r",
        "no/such",
    ),
    *(
        "0-99999999999999",
        "5-1",
        "1-",
        "-1-2",
        "1-2-3",
        "²-³",
        "0,0",
        "test:",
        "test:0-99999999999",
        "train:-1",
        "test:²",
        "none",
        "nan",
        "0",
    ),
    *(
        "t.toml",
        "checkpoints",
        "checkpoints/r",
        "a.png",
        "http://127.0.0.1:1/x",
        "con",
        "~",
        "~root/x",
        "~nobody",
        "x" * 300 + ".html",
    ),
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "sample r": ("sample", "r", "-n", "1"),
    "sample ddpm": ("sample", "ancestral", "-c", "r", "-n", "1"),
    "train": ("train", "t.toml", "--steps", "1"),
    "train --plan": ("train", "t.toml", "--plan", "--steps", "1"),
    "eval": ("eval", "fid", "-c", "r", "-n", "16", "--features", "random"),
    "eval --samples": ("eval", "fid", "--samples", "photos", "--data", "photos", "--features", "random"),
    "convert": ("convert", "r", "--to", "safetensors"),
    "data check": ("data", "check", "photos", "--image-size", "8"),
    **{
        name: tuple(name.split())
        for name in ("info r", "report r", "list runs", "runs rm r", "runs slim r", "cache", "replay r", "env")
    },
    **{name: tuple(name.split()) for name in ("choose", "compare r", "completion", "list models")},
}


@cache
def flags(command: str, folder: str) -> tuple[tuple[str, str], ...]:
    """The options of a command that take a value, with the type of it; `folder` holds the run and recipe that it names."""
    import os

    from gencli.cli import console
    from gencli.cli.main import Root

    before, args = Path.cwd(), [part for part in COMMANDS[command] if part]
    os.chdir(folder)
    try:
        console.state.args = args[1:]
        found: Any = Root(name="gencli").get_command(None, args[0])
        if args[0] in ("sample", "train"):
            found = found.resolve_command(None, args[1:])[1]
        elif hasattr(found, "commands") and len(args) > 1 and args[1] in found.commands:
            found = found.commands[args[1]]
        made = []
        for parameter in found.params:
            name = next((opt for opt in parameter.opts if opt.startswith("--")), "")
            if name and not getattr(parameter, "is_flag", False):
                made.append((name, str(parameter.type.name)))
        return tuple(made)
    except Exception:  # a command that is not there
        return ()
    finally:
        os.chdir(before)
        console.state.args = []


def parses(value: str, kind: str) -> bool:
    """Whether a value is of an option's type."""
    try:
        {"integer": int, "float": float}.get(kind, str)(value)
    except (ValueError, OverflowError):
        return False
    return True


def makers(stock: Stock) -> dict[str, Maker]:
    """Command lines."""
    place = stock.folder / "for options"

    def prepared(cwd: Path, random: Random, kind: str) -> None:
        stock.run(cwd, kind)
        stock.recipe(cwd, kind)
        (cwd / "photos").mkdir()
        for i in range(2):
            photo(random, "L", (8, 8)).save(cwd / "photos" / f"{i}.png")
        photo(random, "L", (8, 8)).save(cwd / "a.png")

    def options(random: Random, cwd: Path) -> Case:
        command = random.choice(list(COMMANDS))
        kind = "ddpm" if command == "sample ddpm" or random.random() < 0.3 else "vae"
        prepared(cwd, random, kind)
        there = place.with_name(f"{place.name} {kind}")
        if not there.is_dir():
            prepared(there, Random(0), kind)
        known = flags(command, str(there))
        args, framed, what = COMMANDS[command], True, command
        for _ in range(random.choice((1, 1, 1, 2))):
            if not known or random.random() < 0.12:
                value = random.choice((*WORDS, *NUMBERS))
                if "\0" not in value:
                    args = (*args, value) if random.random() < 0.5 else (args[0], value, *args[2:])
                what += " with an argument"
                continue
            name, typed = random.choice(known)
            value = random.choice(
                (*NUMBERS, *WORDS) if typed in ("integer", "float") and random.random() < 0.8 else (*WORDS, *NUMBERS)
            )
            args = (*args, f"{name}={value}") if random.random() < 0.8 else (*args, name, value)
            framed &= parses(value, typed)
            what += f" {name}"
        return Case(
            args, framed, what, "--overwrite" in args or "rm" in args or "--clear" in what or "--resume" in what
        )

    return {"options": options}
