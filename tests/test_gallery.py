"""The gallery is what was measured, every method is in it, and its judge is one that can say no."""

from __future__ import annotations

import json

from benchmarks import gallery, judge
from gencli import recipe, registry

FACTS = json.loads(gallery.FACTS.read_text(encoding="utf-8"))


def test_the_page_is_made_of_the_stored_figures() -> None:
    assert (gallery.DOCS / "gallery.md").read_text(encoding="utf-8") == gallery.page(FACTS)


def test_every_method_has_an_entry_with_a_small_picture_or_is_named_as_missing() -> None:
    shown = {recipe.load(name)["model"]["name"] for name in FACTS}
    rest = set(registry.entries("models")) - shown
    assert shown <= set(registry.entries("models"))
    assert all(f"`{name}`" in gallery.missing(FACTS) for name in rest)
    for name in FACTS:
        size = (gallery.DOCS / "gallery" / f"{name}.webp").stat().st_size
        assert 500 < size <= gallery.MOST_BYTES, f"{name} has {size} bytes"


def test_both_controls_miss_the_bar_of_every_entry() -> None:
    judged = {name: entry for name, entry in FACTS.items() if "judge" in entry}
    assert judged
    for name, entry in judged.items():
        for key, row in entry["judge"].items():
            assert entry["passes"][key] == judge.passes(row), (name, key)
        assert not entry["passes"]["gaussian"] and not entry["passes"]["untrained"], name
