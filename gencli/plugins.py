"""Components and recipes of other packages, found through entry points and judged without executing any of their code.

The groups `gencli.models`, `gencli.samplers`, `gencli.data` and `gencli.metrics` name a module each, called as its
component; `gencli.recipes` names a package whose `*.toml` are recipes. What cannot be used is kept with the reason: it
takes nobody's place, and everything else works. What only running the module would show is said when it is used.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from gencli.errors import GencliError

WHAT = {"models": "model", "samplers": "sampler", "data": "data set", "metrics": "metric", "recipes": "recipe"}
_RIVALS = {
    "models": ("models", "samplers", "recipes"),  # `sample` takes either of the first two, `train` a model or a recipe
    "samplers": ("samplers", "models"),
    "data": ("data",),
    "metrics": ("metrics",),
    "recipes": ("recipes", "models"),
}


def public_name(stem: str) -> str:
    """`gated_pixelcnn` -> `gated-pixelcnn`."""
    return stem.replace("_", "-")


@dataclass(frozen=True)
class Point:
    """What an entry point names: the module of a component, or a recipe's file."""

    kind: str
    name: str
    module: str
    package: str  # `tiny 1.0`
    attribute: str = ""
    text: str = ""
    path: Path = Path()


@dataclass(frozen=True)
class Broken:
    """An entry point that cannot be used, and why."""

    kind: str
    name: str
    module: str
    package: str
    why: str

    def __str__(self) -> str:
        return f"plugin {self.package}: {WHAT[self.kind]} '{self.name}' ({self.module}) cannot be used: {self.why}"

    def error(self) -> GencliError:
        """For a command that asks for it by name."""
        package = self.package.rsplit(" ", 1)[0]
        return GencliError(
            str(self), f"mend it, update it (pip install -U {package}) or remove it (pip uninstall {package})"
        )


def scan(own: Callable[[str], Container[str]]) -> tuple[list[Point], list[Broken]]:
    """Every entry point that can be used, and every other with the reason; `own` gives gencli's own names of a kind."""
    every = entry_points()
    judged = [found for kind in WHAT for point in every.select(group=f"gencli.{kind}") for found in _judge(kind, point)]
    whole = [point for point in judged if isinstance(point, Point)]
    good: list[Point] = []
    bad = [found for found in judged if isinstance(found, Broken)]
    for point in whole:
        why = _clash(point, whole, own)
        if why:
            bad.append(Broken(point.kind, point.name, point.module, point.package, why))
        else:
            good.append(point)
    return good, bad


def _clash(point: Point, others: list[Point], own: Callable[[str], Container[str]]) -> str:
    for kind in _RIVALS[point.kind]:
        if point.name in own(kind):
            return f"gencli has a {WHAT[kind]} of this name"
        for other in others:
            pair = {point.kind, kind} == {"models", "recipes"} and other.package == point.package
            if other is not point and (other.kind, other.name) == (kind, point.name) and not pair:
                return f"package {other.package} has a {WHAT[kind]} of this name too"
    return ""


def _judge(kind: str, point: EntryPoint) -> Iterator[Point | Broken]:
    module, _, attribute = point.value.split("[")[0].partition(":")
    module, attribute, name = module.strip(), attribute.strip(), public_name(point.name)
    package = f"{point.dist.name} {point.dist.version}" if point.dist else "of no package"
    try:
        specs = _specs(module)
        if kind == "recipes":
            folders = [Path(place) for place in specs[-1].submodule_search_locations or ()]
            files = sorted(path for folder in folders for path in folder.glob("*.toml"))
            if not files:
                raise ImportError(f"{module} is no package with .toml files in it")
            yield from (Point(kind, public_name(path.stem), module, package, path=path) for path in files)
            return
        stem = public_name(module.rsplit(".", 1)[-1])
        if name != stem:
            raise ImportError(f"a component is called as its file, which is '{stem}'")
        texts = [_source(spec) for spec in specs]
        for text, spec in zip(texts, specs, strict=True):
            _check_imports(text, spec)
        yield Point(kind, name, module, package, attribute, text=texts[-1])
    except (ImportError, SyntaxError, ValueError) as error:
        yield Broken(kind, name, module, package, reason(error))


def reason(error: BaseException) -> str:
    """An error of somebody else's code in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _specs(module: str) -> list[ModuleSpec]:
    """Where a module and the packages around it are; `importlib.util.find_spec` would import the packages."""
    head, *rest = module.split(".")
    found = [find_spec(head) if head else None]
    for i in range(len(rest)):
        inside = found[-1].submodule_search_locations if found[-1] else None
        found.append(PathFinder.find_spec(".".join([head, *rest[: i + 1]]), inside) if inside is not None else None)
    specs = [spec for spec in found if spec is not None]
    if len(specs) < len(found):
        raise ModuleNotFoundError(f"No module named '{module}'")
    return specs


def _source(spec: ModuleSpec) -> str:
    read = getattr(spec.loader, "get_source", None)
    return (read(spec.name) or "") if read else ""


def _check_imports(text: str, spec: ModuleSpec) -> None:
    """Refuse what does not parse, or imports at its top a package that is not installed."""
    for node in ast.parse(text, spec.origin or spec.name).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        for head in (name.split(".")[0] for name in names):
            if head not in sys.modules and find_spec(head) is None:
                raise ModuleNotFoundError(f"No module named '{head}'")
