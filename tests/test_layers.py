"""Imports point one way: a module imports from its own layer and from those before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gencli"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("plugins", "registry", "config", "core", "crash", "device", "files", "home", "launch", "recipe"),
    ("bundle", "runs"),
    ("nn",),
    ("networks",),
    ("operators", "guidance", "samplers"),
    ("adapters",),
    ("models",),
    ("codecs", "data", "metrics"),
    ("training", "evaluation", "converters", "report"),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(source: str) -> list[str]:
    """Every module of gencli that a source imports at run time, as dotted names."""
    tree = ast.parse(source)
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for body in node.body
        for inner in ast.walk(body)
    }
    found: list[str] = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            inside = (
                [f"gencli.{alias.name}" for alias in node.names] if node.module == "gencli" else [node.module or ""]
            )
            found += inside
    return [name for name in found if name.startswith("gencli.") and name != "gencli.__version__"]


def breaches(layer: str, source: str) -> list[str]:
    """The imports of a module in `layer` that point the wrong way."""
    names = [name.split(".")[1] for name in imports(source)]
    return [f"{layer} imports {name}" for name in names if RANK[name] > RANK[layer]]


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert layer in RANK, f"{layer} is in no layer"
    assert not breaches(layer, path.read_text(encoding="utf-8"))


def test_every_direction_and_every_place_is_seen() -> None:
    assert breaches("core", "from gencli.models.vae import vqvae") == ["core imports models"]
    assert breaches("nn", "def f():\n    import gencli.cli.main") == ["nn imports cli"]
    assert breaches("samplers", "from gencli import training") == ["samplers imports training"]
    assert not breaches("models", "from gencli.samplers import ddim\nfrom gencli import __version__")
    assert not breaches("core", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from gencli.cli import main")


def test_every_layer_that_exists_has_a_rank() -> None:
    there = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert there - {"__init__"} <= set(RANK)
