"""The Markdown of model cards as HTML: headings, paragraphs, lists, tables, code; anything else stays the text that it is."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from gencli.report.markup import Markup, code, element, joined, table

_HEADING = re.compile(r"(#{1,6})\s+(.*)")
_ITEM = re.compile(r"[-*]\s+(.*)")
_RULE = re.compile(r"\|?[\s|:-]*-[\s|:-]*")
_INLINE = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*")


def rendered(text: str, below: int = 2) -> Markup:
    """A card's text under a heading of level `below`; no level of its headings is skipped."""
    lines, made, level = text.replace("\r\n", "\n").split("\n"), [], below
    while lines:
        if not lines[0].strip():
            lines.pop(0)
        elif lines[0].startswith("```"):
            made.append(_fence(lines))
        elif found := _HEADING.fullmatch(lines[0]):
            lines.pop(0)
            level = min(below + len(found[1]), level + 1, 6)
            made.append(element(f"h{level}", _inline(found[2])))
        elif lines[0].startswith("|"):
            made.append(_table(list(_while(lines, lambda line: line.startswith("|")))))
        elif _ITEM.fullmatch(lines[0]):
            items = _while(lines, lambda line: _ITEM.fullmatch(line) is not None)
            made.append(element("ul", [element("li", _inline(line[2:].strip())) for line in items]))
        else:
            made.append(element("p", _inline(" ".join([lines.pop(0), *_while(lines, _plain)]))))
    return joined(made)


def _plain(line: str) -> bool:
    starts = line.startswith(("|", "```")) or _HEADING.fullmatch(line) or _ITEM.fullmatch(line)
    return bool(line.strip()) and not starts


def _while(lines: list[str], fits: Callable[[str], bool]) -> Iterator[str]:
    while lines and fits(lines[0]):
        yield lines.pop(0)


def _fence(lines: list[str]) -> Markup:
    lines.pop(0)
    inside = list(_while(lines, lambda line: not line.startswith("```")))
    del lines[:1]
    return element("pre", code("\n".join(inside)))


def _table(lines: list[str]) -> Markup:
    rows = [[_inline(cell.strip()) for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]
    ruled = len(rows) > 1 and _RULE.fullmatch(lines[1]) is not None
    header = rows[0] if ruled and any(rows[0]) else []
    return table(header, rows[2 if ruled else 0 :], "table of the model card")


def _inline(text: str) -> Markup:
    made, at = [], 0
    for found in _INLINE.finditer(text):
        made += [text[at : found.start()], code(found[1]) if found[1] else element("strong", found[2])]
        at = found.end()
    return joined(made, text[at:])
