"""`gencli cache`: every cache is known, its size is true, and clearing deletes nothing else."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from shell import Shell
from tiny import table, trained

import gencli
from gencli import files, home, registry
from gencli.bundle import Run
from gencli.cli import console
from gencli.data import _cache, _download, open_data
from gencli.metrics import _features, _inception
from gencli.training.cache import encoded

MADE, ALL = ["folders", "codes", "features"], ["folders", "codes", "features", "data", "weights"]


def content() -> dict[str, int]:
    """Every file under the home folder, with its size."""
    top = home.home()
    return {str(p.relative_to(top)): p.stat().st_size for p in sorted(top.rglob("*")) if p.is_file()}


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Every cache, filled by what fills it, with things of the user's own between."""
    for i in range(12):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("L", (8, 8), i * 20).save(tmp_path / "pictures" / f"{i}.png")
    assert len(open_data(str(tmp_path / "pictures"), {"image_size": "8"}).split("train"))
    codec = Run.load(trained(tmp_path / "codecs", table("vqvae", steps=1)))
    learned = SimpleNamespace(
        config=SimpleNamespace(level=""), run=codec, encode=lambda batch: {"x": torch.zeros(len(batch["x"]), 2)}
    )
    encoded(SimpleNamespace(codecs=[learned]), open_data("digits").split("test"), "hash")  # type: ignore[arg-type]
    digits = open_data("digits", {"image_size": 8})
    _features.reference(digits, "test", _features.extractor("pixels", None, False, torch.device("cpu")), n=20)
    top = home.home()
    for file in ("data/mnist/a.gz", f"weights/{_inception.FILE}"):
        (top / file).parent.mkdir(parents=True, exist_ok=True)
        (top / file).write_bytes(b"x" * 500)
    for mine in (
        *("checkpoints/run/config.json", "checkpoints/run/model.safetensors", "notes.txt", "data/holiday/1.jpg"),
        *(
            "weights/thesis.docx",
            "cache/mine.npy",
            "cache/features/mine.npy",
            "cache/codes/song.mp3",
            "cache/folders/a/b",
        ),
    ):
        (top / mine).parent.mkdir(parents=True, exist_ok=True)
        (top / mine).write_text("mine")
    return top


def test_whatever_is_kept_at_home_is_a_cache_or_a_run() -> None:
    """Every path under `home()` that the source spells out."""
    named = set()
    for path in Path(gencli.__file__).parent.rglob("*.py"):
        for parts in re.findall(r'(?<!Path.)\bhome\(\)((?: / "[\w.-]+")+)', path.read_text("utf-8")):
            named.add("/".join(re.findall(r'"([\w.-]+)"', parts)))
    assert named == {cache.inside for cache in home.CACHES} | {"checkpoints"}


def test_caches_are_where_their_users_look() -> None:
    by_name = {cache.name: cache.folder for cache in home.CACHES}
    assert [*by_name] == ALL
    assert by_name["folders"] == _cache.folder() and by_name["data"] == _download.cache_folder("mnist").parent


def test_sizes_are_of_what_is_gencli_s(shell: Shell, full: Path) -> None:
    document = shell.fine("cache", "--json").document
    sizes = {row["cache"]: row["size"] for row in document["caches"]}
    there = content()
    for cache in home.CACHES:
        mine = sum(size for name, size in there.items() if name.startswith(cache.inside) and size != len("mine"))
        assert sizes[cache.name] == mine > 0, cache.name
    assert document["size"] == sum(sizes.values()) and document["schema"] == 1
    lines = [line.split("\t") for line in shell.fine("cache").out.splitlines()]
    assert lines[0] == ["cache", "what", "if cleared", "size", "folder"] and [line[0] for line in lines[1:]] == ALL
    assert [line[2] for line in lines[1:]] == ["made again"] * 3 + ["fetched again"] * 2


@pytest.mark.parametrize(
    ("what", "cleared"),
    [
        ([], MADE),
        (["codes"], ["codes"]),
        (["codes, weights"], ["codes", "weights"]),
        (["data"], ["data"]),
        (["all"], ALL),
    ],
)
def test_clearing_deletes_what_was_asked_and_only_what_gencli_made(
    shell: Shell, full: Path, what: list[str], cleared: list[str]
) -> None:
    before = content()
    done = shell.fine("cache", "--clear", *what, "--yes", "--json")
    after = content()
    inside = tuple(cache.inside + "/" for cache in home.CACHES if cache.name in cleared)
    gone = {name for name in before if name.startswith(inside) and before[name] != len("mine")}
    assert gone and {*before} - {*after} == gone
    assert done.document["cleared"] == cleared and done.document["freed"] == sum(before[name] for name in gone)


def test_what_was_cleared_comes_again(shell: Shell, tmp_path: Path, full: Path) -> None:
    before = content()
    shell.fine("cache", "--clear", "--yes")
    assert len(open_data(str(tmp_path / "pictures"), {"image_size": "8"}).split("train"))
    digits = open_data("digits", {"image_size": 8})
    _features.reference(digits, "test", _features.extractor("pixels", None, False, torch.device("cpu")), n=20)
    assert {name: size for name, size in before.items() if "codes/" not in name and "stat-" not in name}.items() <= (
        content().items()
    )


def test_what_interrupted_writes_left_goes_too(shell: Shell, full: Path) -> None:
    (full / "cache" / "features" / ".abc.npy.12-ab.tmp").write_text("half")
    shell.fine("cache", "--clear", "features", "--yes")
    assert [p.name for p in (full / "cache" / "features").iterdir()] == ["mine.npy"]


def test_a_cache_on_another_disk_stays_linked(shell: Shell, full: Path, tmp_path: Path) -> None:
    place = full / "cache" / "features"
    place.rename(tmp_path / "other-disk")
    place.symlink_to(tmp_path / "other-disk")
    assert shell.fine("cache", "--clear", "features", "--yes", "--json").document["freed"] > 0
    assert place.is_symlink() and [p.name for p in place.iterdir()] == ["mine.npy"]


def test_clearing_asks_first(shell: Shell, full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = content()
    shell("cache", "--clear").fails("folders", "add --yes")
    shell("cache", "--clear", "-q").fails("add --yes")
    shell("cache", "--clear", "coddes", "--yes").fails("unknown cache 'coddes'", "codes")
    monkeypatch.setattr(console, "is_terminal", lambda: True)
    answer = io.StringIO("n\n")
    answer.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", answer)
    done = shell("cache", "--clear", "data")
    assert done.code == 1 and "to be fetched again" in done.err and "nothing was changed" in done.err
    assert content() == before


def test_nothing_cached_is_nothing_to_clear(shell: Shell) -> None:
    assert {row["size"] for row in shell.fine("cache", "--json").document["caches"]} == {0}
    assert shell.fine("cache", "--clear", "all", "--yes", "--json").document["freed"] == 0
    assert files.inside(home.home()) == [] and "mnist" in registry.entries("data")
