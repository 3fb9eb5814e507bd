"""The page around the sections: head, navigation, style and script, all in one file that asks for nothing from outside.

The page's own policy forbids every request and every script but this one, so a name or note from a run can do nothing.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gencli import __version__
from gencli.report.markup import Markup, code, element, joined

_WEB = Path(__file__).parent / "web"


@dataclass(frozen=True)
class Section:
    """A part of the page with a place in its navigation.

    Args:
        key: of the anchor.
        title: its heading.
        body: below it.
        folds: it has many details, which can be opened together.
    """

    key: str
    title: str
    body: Markup
    folds: bool = False


@dataclass(frozen=True)
class Page:
    """A page before it is written.

    Args:
        kind: what it reports on, above the title.
        title: the heading.
        summary: what it is, in a sentence.
        made: the command or folder that it came from.
        figures: the few facts that everybody wants, by name.
        sections: in order.
        notes: what was damaged or left out.
        pictures: how many are inside.
        following: the command most likely wanted next.
    """

    kind: str
    title: str
    summary: Markup
    made: str
    figures: Sequence[tuple[str, Any]]
    sections: Sequence[Section]
    notes: Sequence[str] = field(default_factory=list)
    pictures: int = 0
    following: str = ""

    def html(self) -> bytes:
        """The file."""
        style, script = (Markup((_WEB / name).read_text(encoding="utf-8")) for name in ("page.css", "page.js"))
        head = element("head", _head(self.title, style, script), element("style", style))
        main = element("main", self._notes(), [_section(one) for one in self.sections], id="content")
        body = element(
            "body",
            element("a", "Skip to the content", href="#content", class_="skip"),
            element("div", self._header(), _navigation(self.sections), main, _footer(), class_="page"),
            element("script", script),
        )
        text = joined(Markup("<!DOCTYPE html>\n"), element("html", head, body, lang="en"), Markup("\n"))
        return text.encode("utf-8", "replace")

    def _header(self) -> Markup:
        figures = [element("div", element("dt", name), element("dd", value)) for name, value in self.figures]
        return element(
            "header",
            element("p", self.kind, class_="kicker"),
            element("h1", self.title),
            element("p", self.summary, class_="summary"),
            element("p", code(self.made)),
            element("dl", figures, class_="figures"),
        )

    def _notes(self) -> Markup | None:
        if not self.notes:
            return None
        return element(
            "aside", element("ul", [element("li", note) for note in self.notes]), class_="notes", aria_label="Notes"
        )


def _head(title: str, style: str, script: str) -> Markup:
    policy = f"default-src 'none'; img-src data:; style-src {_digest(style)}; script-src {_digest(script)}"
    return joined(
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=f"{policy}; base-uri 'none'; form-action 'none'"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("meta", name="generator", content=f"gencli {__version__}"),
        element("title", f"{title} · gencli report"),
        element("link", rel="icon", href="data:,"),
    )


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _section(section: Section) -> Markup:
    heading = element("h2", section.title, id=f"{section.key}-title")
    style = "folds" if section.folds else None
    return element(
        "section", heading, section.body, id=section.key, class_=style, aria_labelledby=f"{section.key}-title"
    )


def _navigation(sections: Sequence[Section]) -> Markup:
    links = [element("li", element("a", section.title, href=f"#{section.key}")) for section in sections]
    return element("nav", element("ul", links), aria_label="Sections")


def _footer() -> Markup:
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return element("footer", f"Written by gencli {__version__} with Python {platform.python_version()} on {now}.")
