"""`gencli cache`: what is kept because it took time to make or fetch, its size, and clearing it."""

from __future__ import annotations

from typing import Any

import typer

from gencli import files, home, registry
from gencli.cli import console
from gencli.cli.options import Flag, build

NAMES = [cache.name for cache in home.CACHES]


def command() -> Any:
    """The `cache` command."""
    return build("cache", "Show what is cached, where and how large; clear it.", _FLAGS, run)


_FLAGS = [
    Flag(
        "clear",
        ("--clear",),
        str,
        f"delete {', '.join(NAMES)} (comma-separated) or all; alone, what comes again without the network",
        metavar="[WHAT]",
        complete=lambda incomplete: [name for name in [*NAMES, "all"] if name.startswith(incomplete)],
    ),
    Flag("yes", ("--yes", "-y"), bool, "do not ask", default=False),
]


def run(values: dict[str, Any]) -> None:
    """Show, or clear."""
    if "clear" in values:
        _clear(_asked(values["clear"]), values["yes"])
        return
    sizes = [files.space(*cache.items).size for cache in home.CACHES]
    rows = [
        [c.name, c.what, "fetched again" if c.fetched else "made again", files.as_size(size), home.short(c.folder)]
        for c, size in zip(home.CACHES, sizes, strict=True)
    ]
    caches = [
        {"cache": c.name, "what": c.what, "fetched": c.fetched, "size": size, "folder": str(c.folder)}
        for c, size in zip(home.CACHES, sizes, strict=True)
    ]
    console.document(caches=caches, size=sum(sizes))
    console.table(rows, ["cache", "what", "if cleared", "size", "folder"])
    console.following("gencli cache --clear")


def _asked(text: str) -> list[home.Cache]:
    if text in ("all", "made"):
        return [cache for cache in home.CACHES if text == "all" or not cache.fetched]
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in NAMES:
            raise registry.unknown("cache", name, [*NAMES, "all"], "gencli cache")
    return [cache for cache in home.CACHES if cache.name in names]


def _clear(caches: list[home.Cache], yes: bool) -> None:
    freed = files.space(*(item for cache in caches for item in cache.items)).freed
    what = ", ".join(
        f"{cache.name} ({cache.what}{', to be fetched again' if cache.fetched else ''})" for cache in caches
    )
    if not console.agreed(f"delete {what} in {home.short(home.home())}, which frees {files.as_size(freed)}", yes):
        console.say("nothing was changed")
        raise typer.Exit(1)
    for cache in caches:
        cache.clear()
    console.document(cleared=[cache.name for cache in caches], freed=freed)
    console.say(f"cleared {', '.join(cache.name for cache in caches)}: {files.as_size(freed)} freed")
    console.following("gencli cache")
