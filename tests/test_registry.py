"""Names: found without importing, unique, and found again from any single slip of the finger."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gencli import config, core, recipe, registry
from gencli.cli.main import ALIASES, COMMANDS
from gencli.errors import GencliError

ALL = [(kind, name) for kind in registry.KINDS for name in registry.entries(kind)]
IDS = [f"{kind}/{name}" for kind, name in ALL]
INTERFACES = (core.Denoiser, core.NextToken, core.TokenDenoiser, core.LatentVariable)
WORDS = {"sample", "exact density", "bound", "encode", "reconstruct", "classify"}
LETTERS = "aeiqx0-"


def test_models_and_samplers_share_no_name() -> None:
    assert not registry.entries("models").keys() & registry.entries("samplers").keys()


def test_no_recipe_is_called_like_another_model() -> None:
    for name in recipe.names():
        if name in registry.entries("models"):
            assert recipe.load(name)["model"]["name"] == name


def test_names_are_those_of_files() -> None:
    for kind, name in ALL:
        entry = registry.entry(kind, name)
        assert name == registry.public_name(entry.module.rsplit(".", 1)[-1]) and name == name.lower()
    assert registry.entry("models", "gated_pixelcnn") is registry.entry("models", "gated-pixelcnn")


# ------------------------------------------------------------------------------------------------------------- entries


@pytest.mark.parametrize(("kind", "name"), ALL, ids=IDS)
def test_the_first_line_says_title_and_paper(kind: str, name: str) -> None:
    entry = registry.entry(kind, name)
    first = entry.doc.split("\n", 1)[0]
    assert entry.title and len(first) <= 120
    if kind == "models" or "arXiv" in first:
        unnumbered = name in ("imagegpt", "beta-vae", "cvae")
        dated = entry.arxiv or (entry.year and int(entry.year) <= 2011) or unnumbered
        assert entry.authors and entry.year and dated, f"not `Title (Authors, Year). arXiv:id`: {first}"
    else:
        assert entry.authors or first.endswith("."), f"neither a paper's line nor a sentence: {first}"


@pytest.mark.parametrize(("kind", "name"), ALL, ids=IDS)
def test_a_paper_is_as_old_as_its_arxiv_number(kind: str, name: str) -> None:
    entry = registry.entry(kind, name)
    if entry.arxiv:
        assert int(entry.year) - (2000 + int(entry.arxiv[:2])) in (0, 1), f"{entry.year} but arXiv:{entry.arxiv}"
        assert 1 <= int(entry.arxiv[2:4]) <= 12


def test_a_head_is_read_and_a_broken_one_is_a_title() -> None:
    match = registry._HEAD.match("A Title: With (Parts) (Ho, Jain & Abbeel, 2020). arXiv:2006.11239")
    assert match and match.groupdict() == {
        "title": "A Title: With (Parts)", "authors": "Ho, Jain & Abbeel", "year": "2020", "arxiv": "2006.11239"
    }  # fmt: skip
    assert not registry._HEAD.match("A Title (Ho, 2020), arXiv:2006.11239")


@pytest.mark.parametrize(("kind", "name"), ALL, ids=IDS)
def test_a_file_defines_one_public_component(kind: str, name: str) -> None:
    cls = registry.load(kind, name)
    assert issubclass(cls, config.Component) and (cls.__doc__ or "").strip()
    tree = ast.parse(Path(str(sys.modules[cls.__module__].__file__)).read_text("utf-8"))
    defined = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert cls.__name__ in defined


@pytest.mark.parametrize("name", registry.entries("models"))
def test_what_a_model_offers_is_what_its_class_has(name: str) -> None:
    entry = registry.entry("models", name)
    cls = entry.load()
    offers = set(entry.offers)
    assert offers and offers <= WORDS

    def has(protocol: type) -> bool:
        methods = [key for key, value in vars(protocol).items() if callable(value) and not key.startswith("_")]
        return all(hasattr(cls, key) for key in methods)

    assert ("sample" in offers) == any(has(interface) for interface in INTERFACES)
    assert ("bound" in offers) == (has(core.Likelihood) and cls.likelihood == "bound")
    assert ("exact density" in offers) == (has(core.Likelihood) and cls.likelihood == "exact")
    assert ("encode" in offers) == has(core.Autoencoder)
    assert ("reconstruct" in offers) == hasattr(cls, "reconstruct")
    assert ("classify" in offers) == has(core.Classifier)


# --------------------------------------------------------------------------------------------------------------- slips


def slips(name: str, letters: str = LETTERS) -> Iterator[str]:
    """Every deletion, swap of neighbours, and substitution or insertion of a few letters."""
    for i in range(len(name)):
        yield name[:i] + name[i + 1 :]
        yield name[:i] + name[i + 1 : i + 2] + name[i] + name[i + 2 :]
        for letter in letters:
            yield name[:i] + letter + name[i + 1 :]
    for i in range(len(name) + 1):
        for letter in letters:
            yield name[:i] + letter + name[i:]


GROUPS = {kind: [*registry.entries(kind)] for kind in registry.KINDS if registry.entries(kind)}
GROUPS |= {
    "train": sorted({*registry.entries("models"), *recipe.names()}),
    "info": sorted({*(name for _, name in ALL), *recipe.names()}),
    "commands": [*COMMANDS, *ALIASES],
}


@pytest.mark.parametrize("group", GROUPS)
def test_every_single_slip_is_answered_with_the_name(group: str) -> None:
    known = GROUPS[group]
    letters = LETTERS if len(known) < 12 else "e"  # everything against everything takes long
    for name in known[:: 1 + len(known) // 20]:
        missed = [s for s in {*slips(name, letters)} - {*known} if name not in registry.nearest(s, known)]
        assert not missed, f"{name} is not among the answers to {missed[:5]}"


def test_nothing_near_is_no_suggestion() -> None:
    assert registry.nearest("zzzzzzzz", registry.entries("models")) == []


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ("", "abc", 3),
        ("abc", "abc", 0),
        ("ab", "ba", 1),
        ("kitten", "sitting", 3),
        ("ddpm", "dpm", 1),
        ("ca", "abc", 3),
    ],
)
def test_distance_counts_slips(a: str, b: str, expected: int) -> None:
    assert registry.distance(a, b) == registry.distance(b, a) == expected


def test_an_unknown_name_is_one_clear_line() -> None:
    with pytest.raises(GencliError) as caught:
        registry.entry("models", "dppm")
    assert caught.value.message == "unknown model 'dppm'" and "ddpm" in caught.value.hint and caught.value.code == 2
    with pytest.raises(GencliError) as caught:
        registry.entry("data", "zzzzzzzz")
    assert "data set 'zzzzzzzz'" in caught.value.message and "gencli list data" in caught.value.hint
