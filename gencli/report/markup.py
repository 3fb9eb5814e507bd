"""HTML as values: every string is escaped unless it is `Markup` already, so that nothing from a file can become an element."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

_VOID = {"br", "hr", "img", "input", "link", "meta"}
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # what no HTML document may hold


class Markup(str):
    """Text that is HTML already."""


def escaped(value: Any) -> Markup:
    """Any value as text of a document."""
    return value if isinstance(value, Markup) else Markup(html.escape(_CONTROLS.sub("\ufffd", str(value))))


def joined(*children: Any, by: str = "") -> Markup:
    """Children one after the other; lists are opened, None is nothing."""
    return Markup(by.join(_flat(children)))


def _flat(children: Iterable[Any]) -> Iterable[Markup]:
    for child in children:
        if child is None:
            continue
        if isinstance(child, (list, tuple)) or hasattr(child, "__next__"):
            yield from _flat(child)
        else:
            yield escaped(child)


def element(tag: str, *children: Any, **attributes: Any) -> Markup:
    """`element("td", 3, class_="number")`; an attribute of None or False is left out, True stands alone.

    Args:
        tag: the element's name.
        children: text, markup, None, or lists of them.
        attributes: an underscore is a hyphen, one at the end is dropped.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items() if value not in (None, False))
    if tag in _VOID:
        assert not children, f"<{tag}> holds nothing"
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{joined(*children)}</{tag}>")


def _attribute(name: str, value: Any) -> str:
    name = name.rstrip("_").replace("_", "-")
    return f" {name}" if value is True else f' {name}="{escaped(value)}"'


def data(value: Any, **attributes: Any) -> Markup:
    """A JSON document inside the page, which a script may read and which cannot end its own element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return element("script", Markup(text), type="application/json", **attributes)


def table(header: Sequence[Any], rows: Iterable[Sequence[Any]], label: str, numbers: Iterable[int] = ()) -> Markup:
    """A table in a region that can be scrolled by keyboard; the first cell of a row is its header.

    Args:
        header: of the columns.
        rows: a cell each.
        label: what the table is, for those who do not see it.
        numbers: columns of numbers, set flush right.
    """
    right = set(numbers)
    body = [
        element("tr", [_cell(cell, i, right, "row" if i == 0 else "") for i, cell in enumerate(row)]) for row in rows
    ]
    return framed(element("tr", [_cell(cell, i, right, "col") for i, cell in enumerate(header)]), body, label)


def noted(
    header: Sequence[Any], rows: Iterable[tuple[Sequence[Any], Any]], label: str, numbers: Iterable[int] = ()
) -> Markup:
    """A table whose rows have more to say: cells, and what stands across the page below them (None: nothing)."""
    right, body = set(numbers), []
    for cells, more in rows:
        first = [_cell(cell, i, right, "row" if i == 0 else "") for i, cell in enumerate(cells)]
        body.append(element("tr", first, class_="of" if more else None))
        if more:
            body.append(element("tr", element("td", more, colspan=len(header)), class_="more"))
    head = element("tr", [_cell(cell, i, right, "col") for i, cell in enumerate(header)])
    return element("div", framed(head, body, label), class_="wide")


def framed(head: Any, body: Any, label: str) -> Markup:
    """Rows as a table in its region."""
    inner = element("table", element("thead", head) if head else None, element("tbody", body))
    return element("div", inner, class_="scroll", role="region", tabindex="0", aria_label=label)


def _cell(value: Any, column: int, right: set[int], scope: str) -> Markup:
    style = "number" if column in right else None
    return element("th" if scope else "td", value, scope=scope or None, class_=style)


def facts(pairs: Iterable[tuple[Any, Any]], label: str) -> Markup:
    """Names and values, a row each."""
    rows = [element("tr", element("th", name, scope="row"), element("td", value)) for name, value in pairs]
    return framed(None, rows, label)


def folded(summary: Any, *body: Any, opened: bool = False, **attributes: Any) -> Markup:
    """What opens when it is asked for."""
    return element("details", element("summary", summary), *body, open=opened, **attributes)


def code(text: Any) -> Markup:
    """A command or a name."""
    return element("code", text)
