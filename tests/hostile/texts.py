"""JSON and TOML: what is no text, what is nested beyond reason, and values of the wrong kind in the right place."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from fuzzing import Case, Maker

from hostile.stock import Stock, damaged

MARK = "\ue000here\ue000"
BOTH = (  # JSON and TOML write these alike
    *(
        "true",
        "false",
        "-1",
        "0",
        "1",
        "-0.5",
        "1e308",
        '""',
        '" "',
        r'"\u0000"',
        r'"\u001b[31mred\nline\r"',
        "[]",
        "{}",
    ),
    *("999999999999", "1" + "0" * 30, "-1" + "0" * 30, "9" * 5000, '"../../../canary"', '"/dev/zero"', '"/"', '"none"'),
    *(
        '"' + "x" * 20000 + '"',
        "[" * 50 + "]" * 50,
        "[" * 90000 + "]" * 90000,
        '[1, "a", [2]]',
        '[""]',
        '"1e400"',
        "4096",
    ),
    *('"\u202eé１²"', "[-1, 0]", "3.0", "1e-320"),
)
IN_JSON = (
    *(
        "null",
        "NaN",
        "Infinity",
        "-Infinity",
        "1e400",
        r'"\ud800"',
        '{"name": "ddpm"}',
        '{"name": null}',
        "{" + '"a":{' * 3000,
    ),
    *('{"a": 1, "a": 2}', '{"": 0}', "[null]", "01", "0x10", "'x'"),
)
IN_TOML = (
    *("nan", "inf", "-inf", "1979-05-27T07:32:00Z", "07:32:00", "0xffffffffffffffffff", "'''x\n'''", '{name = "ddpm"}'),
    *("{name = 3}", "[{}]", "{a = 1, a = 2}", "1_0", "[1979-05-27]", r'"\ud800"'),
)


def paths(tree: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand in nested dicts and lists."""
    if at:
        yield at
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield from paths(value, (*at, key))


def changed(random: Random, tree: Any, keep: tuple[str, ...] = ()) -> Any:
    """A copy with the mark in place of one value, or with one value gone, added or moved to another place."""
    made = json.loads(json.dumps(tree))
    at = random.choice([path for path in paths(made) if path[-1] not in keep])
    holder = made
    for key in at[:-1]:
        holder = holder[key]
    way = random.random()
    if way < 0.12:
        del holder[at[-1]]
    elif way < 0.2 and isinstance(holder, dict):
        holder[random.choice(("extra", "", "name", "a.b", "\n", "width", "_", "é"))] = MARK
    elif way < 0.25 and isinstance(holder, dict):
        other = random.choice(list(holder))
        holder[at[-1]], holder[other] = holder[other], holder[at[-1]]
    else:
        holder[at[-1]] = MARK
    return made


def in_json(random: Random, tree: Any) -> bytes:
    """Hostile JSON that was `tree`."""
    text = json.dumps(tree)
    way = random.random()
    if way < 0.1:
        return damaged(random, text.encode())
    if way < 0.2:
        return random.choice(
            (
                *(
                    b"",
                    b"null",
                    b"[]",
                    b"3",
                    b'"x"',
                    b"{}",
                    b"[" * 10**5,
                    b'{"a":' * 10**5,
                    b"\0" * 64,
                    text.encode("utf-16"),
                ),
                *(b"\xef\xbb\xbf" + text.encode(), text.encode() * 2, text.encode() + b"\0", b"\xff\xfe", b"9" * 5000),
            )
        )
    raw = random.choice((*BOTH, *IN_JSON))
    return json.dumps(changed(random, tree)).replace(json.dumps(MARK), raw).encode("utf-8", "replace")


def is_json(data: bytes) -> bool:
    """Whether these are the bytes of a JSON value."""
    return _read(json.loads, data)


def _read(parse: Callable[[str], Any], data: bytes) -> bool:
    try:
        parse(data.decode())
    except (ValueError, RecursionError):
        return False
    return True


def in_toml(random: Random, tables: dict[str, Any]) -> bytes:
    """Hostile TOML that was `tables`."""
    way = random.random()
    text = written(tables)
    if way < 0.1:
        return damaged(random, text.encode())
    if way < 0.2:
        first, _, rest = text.partition("\n[data]")
        return random.choice(
            (
                *(
                    b"",
                    b"\0",
                    b"[model]",
                    b"[model\n",
                    b"model = 3",
                    b'model = "vae"',
                    b"[[model]]\nname='vae'",
                    text.encode("utf-16"),
                ),
                *(text.encode() * 2, b"a" * 10**5, b"a." * 5000 + b"b = 1", b"x = " + b"[" * 90000, first.encode()),
                *(
                    b"\xff" + text.encode(),
                    text.encode().replace(b"\n", b"\r"),
                    b"x = '''" + b"y" * 10**6,
                    rest.encode(),
                ),
            )
        )
    raw = random.choice((*BOTH, *IN_TOML))
    return written(changed(random, tables)).replace(json.dumps(MARK), raw).encode("utf-8", "replace")


def written(tables: dict[str, Any]) -> str:
    """Tables as TOML, nested ones inline."""

    def value(held: Any) -> str:
        if isinstance(held, dict):
            return "{" + ", ".join(f"{json.dumps(k)} = {value(v)}" for k, v in held.items() if v is not None) + "}"
        if isinstance(held, list):
            return "[" + ", ".join(map(value, held)) + "]"
        return json.dumps(held)

    lines = []
    for name, held in tables.items():
        if isinstance(held, dict):
            lines += [f"[{name}]", *(f"{json.dumps(k)} = {value(v)}" for k, v in held.items() if v is not None)]
        else:
            lines.insert(0, f"{json.dumps(name)} = {value(held)}")
    return "\n".join(lines) + "\n"


def is_toml(data: bytes) -> bool:
    """Whether these are the bytes of a TOML document."""
    return _read(tomllib.loads, data)


RECEIPT = {
    "schema": 1,
    "run": "r",
    "sampler": {"name": "prior"},
    "items": [{"file": "0.png", "seed": 0}, {"file": "1.png", "seed": 1}],
}
BUNDLE = {
    **{
        "what": "loss",
        "step": 1,
        "layer": "encoder",
        "phase": "main",
        "rows": [0, 4],
        "process": [0, 1],
        "items": [0, 1, 2, 3],
    },
    **{"precision": "no", "device": "cpu"},
}
LINE = {
    "metric": "fid",
    "value": 3.5,
    "n": 16,
    "receipt": {"features": "random", "seeds": "0-15"},
    "created": "2026-01-01",
}
CELL = {
    "run": "r",
    "sampler": "ddim",
    "steps": 5,
    "settings": {},
    "seconds": 1.0,
    "metrics": {"fid": 3.0},
    "picture": "a.png",
}


def makers(stock: Stock) -> dict[str, Maker]:
    """A run's JSON, the JSON of other programs, and recipes."""

    def config(random: Random, cwd: Path) -> Case:
        folder = stock.run(cwd, kind := random.choice(("vae", "vae", "ddpm")))
        file = folder / "config.json"
        data = in_json(random, json.loads(file.read_bytes()))
        file.write_bytes(data)
        recipe = stock.recipe(cwd, kind)
        args: list[tuple[str, ...]] = [("sample", "r", "-n", "1"), ("info", "r"), ("info", "checkpoints/r", "--json")]
        args += [
            ("list", "runs"),
            ("runs",),
            ("report", "r"),
            ("convert", "r", "--to", "safetensors"),
            ("sample", kind, "-n", "1"),
        ]
        args += [("train", recipe, "--resume", "r", "--steps", "3"), ("train", recipe, "--from", "r", "--steps", "1")]
        args += [("eval", "fid", "-c", "r", "-n", "16", "--features", "random"), ("runs", "slim", "r", "--yes")]
        chosen = random.choice(args)
        return Case(chosen, is_json(data), "config.json", "--resume" in chosen or "slim" in chosen)

    def beside(random: Random, cwd: Path) -> Case:
        folder = stock.run(cwd)
        name, tree, args = random.choice(
            (
                ("evaluations.jsonl", LINE, ("info", "r")),
                ("evaluations.jsonl", LINE, ("report", "r")),
                ("metrics.jsonl", {"step": 1, "loss": 0.5, "time": 1.0}, ("report", "r")),
                (
                    "metrics.jsonl",
                    {"step": 1, "loss": 0.5},
                    ("train", stock.recipe(cwd), "--resume", "r", "--steps", "3"),
                ),
                ("train/not-finite-1.json", BUNDLE, ("replay", "r")),
                ("train/step-2/state.json", None, ("train", stock.recipe(cwd), "--resume", "r", "--steps", "3")),
                (
                    "train/lock.json",
                    {"pid": 1, "host": "x", "began": "1"},
                    ("train", "t.toml", "--resume", "r", "--steps", "3"),
                ),
                (
                    "compare.json",
                    {"schema": 1, "cells": [CELL], "runs": ["r"], "seeds": [0]},
                    ("report", "checkpoints/r"),
                ),
            )
        )
        file = folder / name
        states = sorted(folder.glob("train/step-*/state.json"))
        file = states[-1] if tree is None else file
        file.parent.mkdir(parents=True, exist_ok=True)
        data = in_json(random, tree if tree is not None else json.loads(file.read_bytes()))
        file.unlink(missing_ok=True)
        file.write_bytes(data + b"\n" if name.endswith("l") else data)
        if name.startswith("train/not"):
            shutil.copy(folder / "model.safetensors", folder / "train" / "not-finite-1.safetensors")
        return Case(args, is_json(data), name, "--resume" in args)

    def receipt(random: Random, cwd: Path) -> Case:
        stock.run(cwd, "ddpm")
        samples = cwd / "samples"
        samples.mkdir()
        for i in range(2):
            (samples / f"{i}.png").write_bytes(PNG)
        data = in_json(random, RECEIPT)
        (samples / "samples.json").write_bytes(data)
        args = [("eval", "fid", "--samples", "samples", "--data", "digits", "--features", "random")]
        args += [("sample", "sdedit", "-c", "r", "--input", "samples", "-n", "1", "--fit", "crop")]
        return Case(random.choice(args), is_json(data), "samples.json")

    def diffusers(random: Random, cwd: Path) -> Case:
        shutil.copytree(stock.folder / "file-diffusers", cwd / "d")
        name = random.choice(("unet/config.json", "scheduler/scheduler_config.json", "gencli.json", "unet/config.json"))
        data = in_json(random, json.loads((cwd / "d" / name).read_bytes()))
        (cwd / "d" / name).write_bytes(data)
        if random.random() < 0.3 and name != "gencli.json":
            (cwd / "d" / "gencli.json").unlink()
        return Case(("convert", "d", "--from", "diffusers", "--no-verify"), is_json(data), name)

    def recipe(random: Random, cwd: Path) -> Case:
        tables = tomllib.loads(stock.bytes(f"{random.choice(('vae', 'ddpm'))}.toml").decode())
        if random.random() < 0.3:
            tables["codecs"] = [{"name": "pixels"}]
            tables["sample"] = {"name": "prior", "guidance": 2.0}
        data = in_toml(random, tables)
        (cwd / "t.toml").write_bytes(data)
        ways = (("--steps", "1"), ("--smoke", "--steps", "1"), ("--plan", "--steps", "2"))
        args = ("train", "t.toml", *random.choices(ways, (4, 3, 1))[0])
        return Case(args, is_toml(data), "recipe")

    return {
        "json-config": config,
        "json-beside": beside,
        "json-receipt": receipt,
        "json-diffusers": diffusers,
        "toml": recipe,
    }


def _png() -> bytes:
    import io

    from PIL import Image

    held = io.BytesIO()
    Image.new("L", (8, 8), 77).save(held, "PNG")
    return held.getvalue()


PNG = _png()
