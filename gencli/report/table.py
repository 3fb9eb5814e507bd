"""The README's table of methods, read from the registry: papers, files and recipes, without importing a component.

`python -m gencli.report.table README.md` writes it between the markers of a file.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from gencli import files, recipe, registry
from gencli.errors import GencliError

BEGIN = "<!-- methods: written by `python -m gencli.report.table README.md` -->"
END = "<!-- /methods -->"
KINDS = ("models", "samplers", "guidance", "networks", "metrics", "codecs", "data")


def methods() -> str:
    """One table a kind: name, paper, what it offers and, for models, recipes."""
    return "\n\n".join(_table(kind) for kind in KINDS if registry.entries(kind))


def _table(kind: str) -> str:
    found = [entry for entry in registry.entries(kind).values() if not entry.package]
    if kind == "models":
        made = _recipes()
        rows = [[_file(e), _paper(e), ", ".join(e.offers), ", ".join(made.get(e.name, []))] for e in found]
        return _lines(["model", "paper", "offers", "recipes"], rows)
    return _lines([kind, "paper or description"], [[_file(e), _paper(e)] for e in found])


def _file(entry: registry.Entry) -> str:
    return f"[`{entry.name}`]({entry.module.replace('.', '/')}.py)"


def _paper(entry: registry.Entry) -> str:
    if not entry.authors:
        return entry.title.rstrip(".")
    link = f" [{entry.arxiv}](https://arxiv.org/abs/{entry.arxiv})" if entry.arxiv else ""
    return f"{entry.title} ({entry.authors}, {entry.year}){link}"


def _recipes() -> dict[str, list[str]]:
    made: dict[str, list[str]] = {}
    for name in (name for name, path in recipe.names().items() if path.parent == recipe.FOLDER):
        made.setdefault(registry.public_name(recipe.load(name)["model"]["name"]), []).append(f"`{name}`")
    return made


def _lines(header: list[str], rows: Iterable[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def between(text: str) -> tuple[str, str, str]:
    """What stands before, between and after the markers."""
    if BEGIN not in text or END not in text:
        raise GencliError("the text has no place for the table of methods", f"put in the lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    inner, after = rest.split(END, 1)
    return before, inner.strip(), after


def rewrite(path: Path) -> None:
    """Put today's table between the markers of a file."""
    before, _, after = between(path.read_text(encoding="utf-8"))
    files.atomic_write(path, f"{before}{BEGIN}\n{methods()}\n{END}{after}".encode())


if __name__ == "__main__":
    rewrite(Path(sys.argv[1]))
