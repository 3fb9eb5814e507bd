"""Names to components: the file's name is the component's name, read without importing it.

`models/diffusion/ddpm.py` is the model `ddpm`; `samplers/next_token.py` is the sampler `next-token`. The module's
docstring is its entry: the first line `Title (Authors, Year). arXiv:id`, then `Offers: sample, bound, …`. Adding a
component is adding its file; third-party packages add theirs through the entry-point groups `gencli.models`,
`gencli.samplers`, `gencli.data` and `gencli.metrics`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gencli.errors import GencliError

KINDS = ("models", "networks", "samplers", "guidance", "operators", "adapters", "codecs", "data", "metrics")
PLUGINS = ("models", "samplers", "data", "metrics")
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

    def load(self) -> type[Any]:
        """Import the module and return the one public component that it defines."""
        from gencli.config import Component

        module = importlib.import_module(self.module)
        found = [
            value
            for key, value in vars(module).items()
            if isinstance(value, type)
            and issubclass(value, Component)
            and value.__module__ == module.__name__
            and not key.startswith("_")
        ]
        assert len(found) == 1, f"{self.module} must define exactly one public component, found {len(found)}"
        return found[0]


def public_name(stem: str) -> str:
    """`gated_pixelcnn` -> `gated-pixelcnn`."""
    return stem.replace("_", "-")


def _read(kind: str, name: str, module: str, family: str, path: Path) -> Entry:
    match = _DOC.match(path.read_text(encoding="utf-8"))
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
    )


@cache
def entries(kind: str) -> dict[str, Entry]:
    """Every component of a kind by its public name, sorted; nothing is imported."""
    folder = ROOT / kind
    found: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*.py")):
        inner = path.relative_to(folder)
        if any(part.startswith("_") for part in inner.parts):
            continue
        module = ".".join(("gencli", kind, *inner.with_suffix("").parts))
        name = public_name(path.stem)
        assert name not in found, f"two {kind} are called {name}"
        found[name] = _read(kind, name, module, inner.parts[0] if len(inner.parts) > 1 else "", path)
    if kind in PLUGINS:
        for point in entry_points(group=f"gencli.{kind}"):
            module = point.value.split(":")[0]
            located = find_spec(module.split(".")[0]) and find_spec(module)
            if located and located.origin:
                name = public_name(point.name)
                found.setdefault(name, _read(kind, name, module, "plugin", Path(located.origin)))
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


_SINGULAR = {k: k[:-1] for k in ("models", "networks", "samplers", "operators", "adapters", "codecs", "metrics")} | {
    "data": "data set"
}


def unknown(what: str, name: str, known: Iterable[str], listing: str) -> GencliError:
    """The error for a name that nothing answers to: the nearest names, and where all of them are listed."""
    near = nearest(name, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"see `{listing}`"
    return GencliError(f"unknown {what} '{name}'", hint)


def nearest(name: str, known: Iterable[str], most: int = 4) -> list[str]:
    """Known names close to a mistyped one: all at edit distance one, else the best within a third of its length."""
    typed = public_name(name.lower())
    ranked = sorted((distance(typed, other), other) for other in known)
    ranked = [(d, other) for d, other in ranked if d <= max(1, len(typed) // 3)]
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
