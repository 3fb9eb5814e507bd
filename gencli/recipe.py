"""Recipes: TOML files in which every selectable thing has a table; the first comment line is the summary.

[model] name + settings, [model.net] the network · [data] · [[codecs]] · [train] · [sample] the default sampler
[smoke] the same tables in miniature · laptop = true: `gencli train MODEL --data DATA` chooses `MODEL-DATA` by itself
from = "RUN": it begins from the weights of that run, with its settings; its miniature begins from nothing
"""

from __future__ import annotations

import math
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from gencli import files, registry
from gencli.config import merge
from gencli.errors import GencliError

FOLDER = Path(__file__).parent / "recipes"
SMOKE = {"train": {"steps": 2, "batch_size": 8}}  # of a model without a recipe
DEEPEST = 64  # parts of a dotted key
TABLES = ("model", "data", "codecs", "train", "sample", "smoke", "spec", "laptop", "from")


@cache
def names() -> dict[str, Path]:
    """Every recipe by name: gencli's own and those of plugins."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.toml"))} | registry.plugin_recipes()


def summary(path: Path) -> str:
    """The recipe's first comment line."""
    return path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ").strip()


def load(name: str, *, smoke: bool = False, data: str | None = None) -> dict[str, Any]:
    """The tables of a recipe: a shipped one, a path to a `.toml`, or a model without a recipe (its defaults).

    Args:
        name: recipe or model.
        smoke: the miniature.
        data: the data set that will be used; a laptop recipe for it is preferred over the model's general one.
    """
    path = _find(name, data)
    if path is None:
        key = registry.entry("models", name).name
        return {"model": {"name": key}, "recipe": key, **(SMOKE if smoke else {})}
    table = _read(path)
    small = table.pop("smoke", {})
    table["recipe"] = path.stem
    table.pop("laptop", None)
    if smoke:
        table.pop("from", None)
    if not _named(table.get("model")):
        raise GencliError(f"recipe {path} names no model", 'begin with [model] and name = "…"')
    if "data" in table and not _named(merge(table["data"], small.get("data", {})) if smoke else table["data"]):
        raise GencliError(f"recipe {path} has data without a name", 'begin [data] with name = "…"')
    return merge(table, small) if smoke else table


def _find(name: str, data: str | None) -> Path | None:
    key = registry.public_name(name)
    if name.endswith(".toml"):
        if not Path(name).is_file():
            raise GencliError(f"no recipe file '{name}'", "give the path of a .toml file, or see `gencli list recipes`")
        return Path(name)
    if data is not None and f"{key}-{data}" in names() and _read(names()[f"{key}-{data}"]).get("laptop"):
        return names()[f"{key}-{data}"]
    if key in names():
        return names()[key]
    if key in registry.entries("models"):
        return None
    known = {*names(), *registry.entries("models")}
    raise registry.unknown("model or recipe", name, known, "gencli list models")


def _read(path: Path) -> dict[str, Any]:
    try:
        text = files.read_bytes(path).decode("utf-8")
        keys = (line.partition("=")[0] for line in text.splitlines() if not line.startswith("#"))
        if any(key.count(".") > DEEPEST for key in keys):  # the parser's time grows with the square
            raise ValueError(f"a key has more than {DEEPEST} parts")
        table = tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:  # of TOML that is none, and of a file that is no text
        why = str(error)[:200] if not isinstance(error, RecursionError) else "it is nested too deeply"
        raise GencliError(f"recipe {path} is not valid TOML: {why}", "mend that line") from None
    for key, value in table.items():
        if key not in TABLES:
            raise GencliError(f"recipe {path} has an unknown table '{key}'", f"it may have {', '.join(TABLES)}")
        if key == "from" and not isinstance(value, str):
            raise GencliError(f"recipe {path}: from is {str(value)[:40]!r}", "give the name of a run")
        if key == "codecs" and not (isinstance(value, list) and all(_named(one) for one in value)):
            raise GencliError(f"recipe {path}: codecs is no list of tables with a name", "write [[codecs]]")
        if key not in ("codecs", "from", "laptop") and not isinstance(value, dict):
            raise GencliError(f"recipe {path}: {key} is no table", f"write [{key}]")
        _check_values(value, f"recipe {path}: {key}")
    return table


def _named(table: Any) -> bool:
    return isinstance(table, dict) and "name" in table


def _check_values(value: Any, where: str) -> None:
    """Refuse a component's name that is no word and a number that is none, at any depth."""
    if isinstance(value, float) and not math.isfinite(value):
        raise GencliError(f"{where} is {value}", "give a number")
    for inner in value if isinstance(value, list) else []:
        _check_values(inner, where)
    for key, inner in value.items() if isinstance(value, dict) else []:
        if key == "name" and not isinstance(inner, str):
            raise GencliError(f"{where}.name is {str(inner)[:40]!r}", "give a word")
        _check_values(inner, f"{where}.{key}")
