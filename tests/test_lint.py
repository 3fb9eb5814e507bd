"""Rules that a reader of the source can check, and ruff cannot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from gencli import registry

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gencli"
BARE = {"randn", "rand", "randint", "randperm", "multinomial", "normal", "bernoulli", "randn_like", "rand_like"}
RANDOM_FREE = ("models", "samplers", "guidance", "networks", "nn", "codecs")


def calls(source: str) -> Iterator[tuple[str, int]]:
    """Every call by its written name, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def bare_random(source: str) -> list[str]:
    """Draws from torch's or numpy's global generators."""
    found = []
    for name, line in calls(source):
        head, _, last = name.rpartition(".")
        if (head == "torch" and last in BARE) or head in ("np.random", "numpy.random", "random", "torch.random"):
            found.append(f"{line}: {name}")
    return found


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (PACKAGE / folder).rglob("*.py"))


def test_nothing_below_the_command_line_prints() -> None:
    below = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] != "cli"]
    said = [
        f"{p}:{line}" for p in below for name, line in calls(p.read_text("utf-8")) if name in ("print", "breakpoint")
    ]
    written = [f"{p}" for p in below if re.search(r"sys\.std(out|err)", p.read_text("utf-8"))]
    assert not said and not written


def test_within_the_command_line_only_the_console_prints() -> None:
    others = [path for path in files("cli") if path.name != "console.py"]
    assert not [p for p in others for name, _ in calls(p.read_text("utf-8")) if name in ("print", "typer.echo")]


def test_models_and_samplers_draw_only_from_the_rng_they_are_given() -> None:
    found = {str(path): bare_random(path.read_text("utf-8")) for path in files(*RANDOM_FREE)}
    assert not {path: lines for path, lines in found.items() if lines}


def test_the_check_of_randomness_sees_what_it_must() -> None:
    assert bare_random("import torch\nx = torch.randn(3)") == ["2: torch.randn"]
    assert bare_random("y = torch.multinomial(p, 1)") and bare_random("np.random.rand(2)")
    assert not bare_random("rng.normal((3,)); p.multinomial(q); torch.zeros(3)")


def test_the_parser_is_used_through_typer_alone() -> None:
    assert not [p for p in PACKAGE.rglob("*.py") if re.search(r"^\s*(import|from) click", p.read_text("utf-8"), re.M)]


def test_no_path_of_one_machine_is_written_down() -> None:
    shipped = [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.toml"), *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    shipped += [*ROOT.glob("benchmarks/*.py"), ROOT / "CHANGELOG.md", ROOT / "Makefile", ROOT / "pyproject.toml"]
    wrong = re.compile(r"(?<![\w.])/(work|home|root|tmp)/|\.\./shared")
    assert not [str(p) for p in shipped if p.is_file() and wrong.search(p.read_text("utf-8"))]


def test_components_are_small_enough_to_read() -> None:
    lines = {str(path): len(path.read_text("utf-8").splitlines()) for path in files(*registry.KINDS, "cli", "training")}
    assert not {path: count for path, count in lines.items() if count > 400}


def test_no_unfinished_work_is_marked() -> None:
    words = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert not [str(p) for p in PACKAGE.rglob("*.py") if words.search(p.read_text("utf-8"))]
