"""Data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gencli import registry

if TYPE_CHECKING:
    from gencli.data._base import Data


def open_data(name: str, settings: Mapping[str, Any] | None = None) -> Data:
    """The data set called `name`, or the folder or zip of images at that path; a registered name comes first.

    Args:
        name: a registered data set (`digits`), or a path: it exists, or holds `/`, `\\` or `.`.
        settings: the data set's own settings.

    Raises:
        GencliError: neither a data set nor a path, with the nearest names.
    """
    return open_table({**(settings or {}), **table_of(name)})


def open_table(table: Mapping[str, Any]) -> Data:
    """The data set of a recipe's `[data]` table."""
    values = dict(table)
    return registry.load("data", values.pop("name")).make(values)


def table_of(name: str) -> dict[str, Any]:
    """The `[data]` table that a name or path on the command line means."""
    known = registry.entries("data")
    if registry.public_name(name) in known:
        return {"name": registry.public_name(name)}
    if any(mark in name for mark in "/\\.") or Path(name).exists():
        return {"name": "folder", "path": str(Path(name).expanduser().absolute())}
    raise registry.unknown("data set", name, known, "gencli list data")
