"""The README tells the truth: its table is the registry's, its commands parse, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from gencli import recipe, registry
from gencli.cli.main import ALIASES, COMMANDS
from gencli.errors import GencliError
from gencli.report import table

ROOT = Path(__file__).parents[1]
TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(path: Path) -> list[str]:
    """The lines of code blocks that begin with gencli."""
    blocks = re.findall(r"^```[a-z]*\n(.*?)^```", path.read_text("utf-8"), re.M | re.S)
    lines = [line.split("#")[0].strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("gencli ")]


def test_the_table_of_methods_is_the_registrys() -> None:
    _, written, _ = table.between((ROOT / "README.md").read_text("utf-8"))
    assert written == table.methods(), "python -m gencli.report.table README.md rewrites it"


def test_the_table_names_every_model_sampler_metric_and_recipe() -> None:
    made = table.methods()
    for kind in ("models", "samplers", "metrics", "networks"):
        for entry in registry.entries(kind).values():
            assert f"[`{entry.name}`]({entry.module.replace('.', '/')}.py)" in made and entry.arxiv in made
    assert all(f"`{name}`" in made for name in recipe.names())


def test_rewriting_changes_only_what_stands_between_the_markers(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    path.write_text(f"before\n\n{table.BEGIN}\nold\n{table.END}\n\nafter\n")
    table.rewrite(path)
    assert path.read_text("utf-8") == f"before\n\n{table.BEGIN}\n{table.methods()}\n{table.END}\n\nafter\n"
    path.write_text("no markers")
    with pytest.raises(GencliError, match="no place"):
        table.rewrite(path)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", path.read_text("utf-8")):
        if not target.startswith("http") and not target.startswith("docs/pictures/"):
            assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.name)
def test_commands_name_what_exists(path: Path) -> None:
    for line in commands(path):
        _, verb, *rest = shlex.split(line)
        assert verb.startswith("-") or verb in {*COMMANDS, *ALIASES}, line
        if verb == "train" and rest and not rest[0].startswith("-") and not rest[0].endswith(".toml"):
            assert rest[0] in {*registry.entries("models"), *recipe.names()} or rest[0] in WORKED, line
        if verb in ("eval", "evaluate"):
            assert rest[0] in registry.entries("metrics") or rest[0] in WORKED, line


WORKED = {"tiny-edm", "tiny-gauss", "tiny-radius"}  # the worked examples of docs/design.md and docs/plugins.md


def test_the_readme_shows_commands() -> None:
    assert len(commands(ROOT / "README.md")) > 15
