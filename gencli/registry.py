"""Names to components: the file's name is the component's name, read without importing it.

`models/diffusion/ddpm.py` is the model `ddpm`; `samplers/next_token.py` is the sampler `next-token`. The module's
docstring is its entry: the first line `Title (Authors, Year). arXiv:id`, then `Offers: sample, bound, …`. Adding a
component is adding its file; other packages add theirs through entry points (`plugins.py`).
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gencli import plugins
from gencli.errors import GencliError
from gencli.plugins import Broken, public_name

KINDS = (
    "models", "networks", "samplers", "guidance", "operators", "adapters", "codecs", "data", "metrics", "converters"
)  # fmt: skip
ROOT = Path(__file__).parent

_HEAD = re.compile(r"^(?P<title>.+?) \((?P<authors>[^()]+), (?P<year>\d{4})\)\.(?: arXiv:(?P<arxiv>\d{4}\.\d{4,5}))?$")
_DOC = re.compile(r'\A"""(.*?)"""', re.DOTALL)
_OFFERS = re.compile(r"^Offers: (.+?)\.?$", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """What is known of a component without importing it."""

    kind: str
    name: str
    module: str
    family: str
    title: str
    authors: str
    year: str
    arxiv: str
    offers: tuple[str, ...]
    doc: str
    package: str = ""  # of a plugin: `tiny 1.0`
    attribute: str = ""

    def load(self) -> type[Any]:
        """Import the module and return the one public component that it defines; a plugin's errors are named."""
        if not self.package:
            return self._component()
        try:
            return self._component()
        except Exception as error:  # of somebody else's code
            why = plugins.reason(error)
            raise Broken(self.kind, self.name, self.module, self.package, why).error() from error

    def _component(self) -> type[Any]:
        from gencli.config import Component

        module = importlib.import_module(self.module)
        found = [
            value
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, Component)
            and value.__module__ == module.__name__
            and not key.startswith("_")
            and self.attribute in ("", key)
        ]
        if len(found) != 1:
            raise ImportError(f"{self.module} must define exactly one public component, found {len(found)}")
        base = "gencli.core" if self.kind == "models" else f"gencli.{self.kind}"
        if self.package and not any(cls.__module__.startswith(base) for cls in found[0].__mro__):
            raise ImportError(f"{found[0].__name__} is no {_SINGULAR[self.kind]}")
        return found[0]


def _entry(kind: str, name: str, module: str, family: str, text: str, package: str = "", attribute: str = "") -> Entry:
    match = _DOC.match(text)
    doc = match.group(1).strip() if match else ""
    first = doc.split("\n", 1)[0]
    head = _HEAD.match(first)
    facts = head.groupdict() if head else {"title": first, "authors": "", "year": "", "arxiv": ""}
    offers = _OFFERS.search(doc)
    return Entry(
        kind=kind,
        name=name,
        module=module,
        family=family,
        title=facts["title"],
        authors=facts["authors"],
        year=facts["year"],
        arxiv=facts["arxiv"] or "",
        offers=tuple(part.strip() for part in offers.group(1).split(",")) if offers else (),
        doc=doc,
        package=package,
        attribute=attribute,
    )


@cache
def _own(kind: str) -> dict[str, Entry]:
    folder = ROOT / kind
    found: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*.py")):
        inner = path.relative_to(folder)
        if any(part.startswith("_") for part in inner.parts):
            continue
        module = ".".join(("gencli", kind, *inner.with_suffix("").parts))
        name = public_name(path.stem)
        assert name not in found, f"two {kind} are called {name}"
        family = inner.parts[0] if len(inner.parts) > 1 else ""
        found[name] = _entry(kind, name, module, family, path.read_text(encoding="utf-8"))
    return found


@cache
def _scanned() -> tuple[list[plugins.Point], list[Broken]]:
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.toml")}
    return plugins.scan(lambda kind: recipes if kind == "recipes" else _own(kind))


def broken() -> list[Broken]:
    """Plugins that cannot be used, with the reason."""
    return _scanned()[1]


def plugin_recipes() -> dict[str, Path]:
    """The recipes of plugins, by name."""
    return {point.name: point.path for point in _scanned()[0] if point.kind == "recipes"}


@cache
def entries(kind: str) -> dict[str, Entry]:
    """Every component of a kind by its public name, sorted; nothing is imported."""
    found = dict(_own(kind))
    for p in _scanned()[0] if kind in plugins.WHAT else ():
        if p.kind == kind:
            found[p.name] = _entry(kind, p.name, p.module, f"plugin {p.package}", p.text, p.package, p.attribute)
    return dict(sorted(found.items()))


def entry(kind: str, name: str) -> Entry:
    """The entry called `name` (hyphens or underscores); a `GencliError` with the nearest names if there is none."""
    known = entries(kind)
    key = public_name(name)
    if key not in known:
        raise unknown(_SINGULAR.get(kind, kind), name, known, f"gencli list {kind}")
    return known[key]


def load(kind: str, name: str) -> type[Any]:
    """The class of a component by kind and name."""
    return entry(kind, name).load()


def attempt(kind: str, name: str) -> type[Any] | None:
    """The class of a component when one of many is looked for: None for an unknown name and for a plugin that fails."""
    found = entries(kind).get(public_name(name))
    try:
        return found.load() if found else None
    except GencliError:  # asking for it by name says why
        return None


_SINGULAR = (
    {k: k[:-1] for k in ("networks", "operators", "adapters", "codecs")} | {"converters": "format"} | plugins.WHAT
)


def unknown(what: str, name: str, known: Iterable[str], listing: str) -> GencliError:
    """The error for a name that nothing answers to: the nearest names, and where all of them are listed.

    A name that only a broken plugin has is answered with what is wrong with the plugin.
    """
    for bad in broken():
        if bad.name == public_name(name):
            return bad.error()
    near = nearest(name, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see `{listing}`"
    return GencliError(f"unknown {what} '{name}'", hint)


def nearest(name: str, known: Iterable[str], most: int = 4) -> list[str]:
    """Known names close to a mistyped one: all at edit distance one, else the best within a third of its length."""
    typed = public_name(name.lower())
    far = max(1, len(typed) // 3)
    ranked = sorted((distance(typed, other), other) for other in known if abs(len(other) - len(typed)) <= far)
    ranked = [(d, other) for d, other in ranked if d <= far]
    best = [other for d, other in ranked if d <= max(1, ranked[0][0])]
    starts = [other for _, other in ranked if other.startswith(typed) and other not in best]
    return best if ranked and ranked[0][0] <= 1 else [*best, *starts][:most]


def distance(a: str, b: str) -> int:
    """Edit distance in which a swap of neighbours counts one (Damerau–Levenshtein, restricted)."""
    before: list[int] = []
    above = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            cost = min(above[j] + 1, row[-1] + 1, above[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, before[j - 2] + 1)
            row.append(cost)
        before, above = above, row
    return above[-1]
