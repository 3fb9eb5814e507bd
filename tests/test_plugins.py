"""Packages from outside, built by hand in a temporary folder: docs/plugins.md executed, and packages that are broken."""

from __future__ import annotations

import json
import os
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from shell import Shell, empty
from test_start import HEAVY, imported

from gencli import plugins, recipe, registry
from gencli.bundle import Run
from gencli.core import Rng
from gencli.errors import GencliError

TEXT = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text("utf-8")
MODEL = '"""A model.\n\nOffers: sample\n"""\nfrom gencli.core import Model\nclass Mine(Model):\n    """One."""\n'


def blocks() -> dict[str, str]:
    """Path to content: each block belongs to the path in backquotes that the text names last before it."""
    made = {}
    for before, kind, body in re.findall(r"(.*?)^```(\w+)\n(.*?)^```", TEXT.split("## Rules")[0], re.M | re.S):
        paths = re.findall(r"`((?:rings/)?[\w-]+\.(?:py|toml))`", before)
        if kind in ("python", "toml"):
            made[paths[-1]] = body
    return made


def package(site: Path, name: str, points: Mapping[str, Mapping[str, str]], sources: Mapping[str, str]) -> None:
    """What `pip install` leaves of a package: its files and the folder that says what it is."""
    for path, text in sources.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")
    facts = site / f"{name}-1.0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    groups = ["\n".join([f"[{group}]", *(f"{k} = {v}" for k, v in of.items())]) for group, of in points.items()]
    (facts / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    (facts / "RECORD").write_text("".join(f"{path},,\n" for path in sources))


def forget() -> None:
    """What is kept of the registry for the life of a process."""
    for kept in (registry._scanned, registry.entries, recipe.names):
        kept.cache_clear()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    before = {*sys.modules}
    forget()
    yield folder
    for name in {*sys.modules} - before:
        module = vars(sys.modules[name])
        if str(folder) in f"{module.get('__file__')} {module.get('__path__')}":
            del sys.modules[name]
    monkeypatch.undo()
    forget()


@pytest.fixture
def tiny(site: Path) -> Path:
    """The package of the documentation."""
    sources = blocks()
    points = tomllib.loads(sources["pyproject.toml"])["project"]["entry-points"]
    package(site, "rings", points, {"rings/__init__.py": "", **sources})
    return site


@pytest.fixture
def shell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Shell]:
    with empty(tmp_path / "work", capsys) as made:
        yield made


# ------------------------------------------------------------------------------------------------- the package of the docs


def test_the_example_is_a_package_with_one_of_each() -> None:
    files = ["tiny_gauss.py", "tiny_cool.py", "tiny_ring.py", "tiny_radius.py", "tiny-gauss.toml"]
    assert [*blocks()] == ["pyproject.toml", *(f"rings/{name}" for name in files)]


def test_its_components_are_listed_and_explained(tiny: Path, shell: Shell) -> None:
    title = "A Gaussian with independent coordinates, fitted by gradient descent."
    listed = shell.fine("list", "models", "--json").document
    (row,) = [row for row in listed["models"] if row["model"] == "tiny-gauss"]
    assert (row["family"], row["title"], row["offers"]) == ("plugin rings 1.0", title, "sample")
    assert "broken" not in listed
    for kind, name in (("samplers", "cool"), ("data", "ring"), ("metrics", "radius"), ("recipes", "gauss")):
        assert f"\ntiny-{name}\t" in shell.fine("list", kind).out
    informed = shell.fine("info", "tiny-cool")
    assert "scaled down" in informed.out and "temperature\tfloat\t0.5" in informed.out
    assert "recipes: tiny-gauss" in shell.fine("info", "tiny-gauss").out


def test_it_is_trained_sampled_and_measured(tiny: Path, shell: Shell) -> None:
    trained = shell.fine("train", "tiny-gauss", "--ema", "0")
    assert trained.out == f"{Path('checkpoints/tiny-gauss-tiny-ring')}\n"
    run = Run.load(trained.out.strip())
    drawn = run.sample(Rng.rows(range(2000)))["x"]
    assert drawn.std(0).tolist() == pytest.approx([2**0.5] * 2, rel=0.06), "the deviation of a circle of radius two"
    sampled = shell.fine("sample", "tiny-cool", "-n", "4", "--temperature", "0.1")
    assert "sampler tiny-cool · checkpoint tiny-gauss-tiny-ring" in sampled.err
    receipt = json.loads((Path(sampled.out.strip()) / "samples.json").read_text())
    assert receipt["sampler"] == {"name": "tiny-cool", "temperature": 0.1}
    (row,) = shell.fine("eval", "tiny-radius", "-n", "1000", "--json").document["results"]
    rayleigh = 2**0.5 * (np.pi / 2) ** 0.5
    assert row["value"] == pytest.approx(2 - rayleigh, abs=0.08)


def test_its_parts_meet_those_of_gencli(tiny: Path, shell: Shell) -> None:
    assert shell.fine("train", "tiny-gauss", "--data", "toy2d", "--smoke", "-q").out.strip().endswith("gauss-toy2d")
    shell.fine("sample", "prior", "-c", "tiny-gauss-toy2d", "-n", "2")
    shell.fine("eval", "wasserstein", "-n", "20", "-c", "tiny-gauss-toy2d", "--data", "tiny-ring")


def test_a_model_without_a_recipe_is_trained_with_the_defaults(tiny: Path, shell: Shell) -> None:
    (tiny / "rings" / "tiny-gauss.toml").rename(tiny / "rings" / "other.toml")
    forget()
    done = shell.fine("train", "tiny-gauss", "--data", "tiny-ring", "--smoke", "-q")
    stored = json.loads((Path(done.out.strip()) / "config.json").read_text())["recipe"]
    assert (stored["recipe"], stored["train"]["steps"], stored["data"]["name"]) == ("tiny-gauss", 2, "tiny-ring")


def test_a_run_whose_plugin_is_gone_names_its_model(tiny: Path, shell: Shell) -> None:
    shell.fine("train", "tiny-gauss", "--smoke", "-q")
    (tiny / "rings-1.0.dist-info").rename(tiny.parent / "away")
    forget()
    shell("sample", "tiny-gauss-tiny-ring").fails("unknown sampler 'tiny-cool'")
    shell("sample", "tiny-gauss-tiny-ring", "--sampler", "prior").fails("unknown model 'tiny-gauss'")
    assert "tiny-gauss-tiny-ring\ttiny-gauss" in shell.fine("list", "runs").out


def test_listing_runs_no_code_of_plugins(tiny: Path, tmp_path: Path) -> None:
    """Neither the component's module nor the package around it, which may import torch."""
    for name in ("__init__", "tiny_gauss"):
        path = tiny / "rings" / f"{name}.py"
        path.write_text(path.read_text() + f"\nimport torch\nprint('executed {name}')\n")
    code, out, modules = imported(
        ["list"], tmp_path, PYTHONPATH=f"{tiny}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    )
    assert code == 0 and "tiny-gauss" in out and "executed" not in out
    assert not modules & {*HEAVY, "rings"}


# ------------------------------------------------------------------------------------------------------------ broken ones

TEXTS = {
    "lacks a dependency": (
        '"""A."""\nimport not_installed_anywhere.part\n',
        "No module named 'not_installed_anywhere'",
    ),
    "does not parse": ('"""A."""\ndef f(:\n', "SyntaxError"),
    "is not there": (None, "No module named 'bad.bad_one'"),
}
RUNNING = {
    "raises": ('"""A."""\nraise RuntimeError("no\\nlicence")\n', "RuntimeError: no licence"),
    "has no component": ('"""A."""\nx = 1\n', "exactly one public component, found 0"),
    "has two components": (MODEL + MODEL.replace("Mine", "Other"), "exactly one public component, found 2"),
    "is of another kind": (
        '"""A."""\nfrom gencli.samplers._base import Sampler\nclass S(Sampler):\n    """S."""\n',
        "S is no model",
    ),
    "imports what is not there": ('"""A."""\nfrom gencli.core import Nonsense\n', "cannot import name 'Nonsense'"),
}


def bad(site: Path, text: str | None, kind: str = "models") -> None:
    sources = {"bad/__init__.py": "", **({"bad/bad_one.py": text} if text is not None else {})}
    package(site, "bad", {f"gencli.{kind}": {"bad-one": "bad.bad_one"}}, sources)


@pytest.mark.parametrize("how", TEXTS)
def test_what_the_text_shows_is_a_warning_and_the_rest_works(tiny: Path, shell: Shell, how: str) -> None:
    text, why = TEXTS[how]
    bad(tiny, text)
    done = shell.fine("list", "models")
    (warning,) = [line for line in done.err.splitlines() if line.startswith("warning:")]
    assert all(word in warning for word in ("plugin bad 1.0", "model 'bad-one'", "bad.bad_one", why))
    assert "bad-one" not in done.out and "\ntiny-gauss\t" in done.out and "\nddpm\t" in done.out
    assert shell.fine("list", "samplers").err.count("warning:") == 0
    assert shell.fine("list", "--json").document["broken"][0]["name"] == "bad-one"
    shell.fine("train", "tiny-gauss", "--smoke", "-q")
    for args in (["train", "bad-one"], ["train", "bad_one", "--help"], ["info", "bad-one"], ["sample", "bad-one"]):
        shell(*args).fails("plugin bad 1.0", "model 'bad-one'", why, "pip uninstall bad")


@pytest.mark.parametrize("how", RUNNING)
def test_what_only_running_shows_is_said_when_it_is_asked_for(tiny: Path, shell: Shell, how: str) -> None:
    text, why = RUNNING[how]
    bad(tiny, text)
    assert "warning" not in shell.fine("list", "models").err
    for args in (["train", "bad-one"], ["info", "bad-one"]):
        shell(*args).fails("plugin bad 1.0", "model 'bad-one'", why)
    document = shell.fine("env", "--json").document
    problems = {row["name"]: row["problem"] for row in document["plugins"]}
    assert why in problems.pop("bad-one") and {*problems.values()} == {""}


def test_a_broken_sampler_metric_or_data_set_is_named_when_asked_for_and_else_passed_over(
    tiny: Path, shell: Shell
) -> None:
    sources = {f"bad/bad_{kind}.py": RUNNING["raises"][0] for kind in ("samplers", "metrics", "data", "models")}
    package(tiny, "bad", {f"gencli.{k}": {f"bad-{k}": f"bad.bad_{k}"} for k in plugins.WHAT if k != "recipes"}, sources)
    shell.fine("train", "tiny-gauss", "--smoke", "-q")
    shell("sample", "bad-samplers").fails("sampler 'bad-samplers'", "no licence")
    shell("eval", "bad-metrics").fails("metric 'bad-metrics'", "no licence")
    shell("train", "tiny-gauss", "--data", "bad-data").fails("data set 'bad-data'", "no licence")
    shell.fine("sample", "tiny-cool", "-n", "1")
    shell.fine("eval", "tiny-radius", "-n", "10")  # looks among all samplers for one that fits


def test_the_traceback_of_a_plugin_is_there_on_request(site: Path, shell: Shell) -> None:
    bad(site, RUNNING["raises"][0])
    with pytest.raises(GencliError) as caught:
        shell("train", "bad-one", "--debug")
    assert isinstance(caught.value.__cause__, RuntimeError)


# ----------------------------------------------------------------------------------------------------------------- clashes


def clashing(*names: str) -> dict[str, str]:
    """Name to reason of what the registry refuses."""
    forget()
    found = {bad.name: bad.why for bad in registry.broken()}
    assert {*found} == {*names}
    return found


@pytest.mark.parametrize(
    ("kind", "name", "why"),
    [
        ("models", "ddpm", "gencli has a model"),
        ("models", "ddim", "gencli has a sampler"),
        ("models", "ddpm_cifar10", "gencli has a recipe"),
        ("samplers", "ddpm", "gencli has a model"),
        ("metrics", "fid", "gencli has a metric"),
        ("data", "digits", "gencli has a data set"),
    ],
)
def test_nothing_of_gencli_is_shadowed(site: Path, kind: str, name: str, why: str) -> None:
    before = {kind: dict(registry.entries(kind)) for kind in plugins.WHAT if kind != "recipes"}
    package(site, "bad", {f"gencli.{kind}": {name: f"bad.{name}"}}, {f"bad/{name}.py": MODEL})
    assert why in clashing(registry.public_name(name))[registry.public_name(name)]
    assert {kind: registry.entries(kind) for kind in before} == before


def test_two_packages_with_one_name_are_both_refused(site: Path, shell: Shell) -> None:
    for name in ("one", "two"):
        package(site, name, {"gencli.models": {"same": f"{name}.same"}}, {f"{name}/same.py": MODEL})
    forget()
    assert {(bad.package, bad.why) for bad in registry.broken()} == {
        ("one 1.0", "package two 1.0 has a model of this name too"),
        ("two 1.0", "package one 1.0 has a model of this name too"),
    }
    assert "same" not in registry.entries("models")
    shell("train", "same").fails("one 1.0", "two 1.0")


def test_a_broken_package_takes_no_name(site: Path) -> None:
    package(site, "one", {"gencli.models": {"same": "one.same"}}, {"one/same.py": "import not_installed_anywhere"})
    package(site, "two", {"gencli.models": {"same": "two.same"}}, {"two/same.py": MODEL})
    assert "not_installed" in clashing("same")["same"]
    assert registry.entry("models", "same").package == "two 1.0"


def test_recipes_shadow_nothing_either(site: Path) -> None:
    files = {f"bad/{name}.toml": "# x\n[model]\nname = 'ddpm'\n" for name in ("ddpm", "ddpm-other", "same")}
    package(site, "bad", {"gencli.recipes": {"bad": "bad"}}, files)
    package(site, "two", {"gencli.models": {"same": "two.same"}}, {"two/same.py": MODEL})
    why = clashing("ddpm", "same")
    assert "gencli has a recipe" in why["ddpm"] and "has a" in why["same"]
    assert recipe.load("ddpm-other")["model"]["name"] == "ddpm" and recipe.names()["ddpm"].parent == recipe.FOLDER


def test_entry_points_that_name_nothing_are_refused_with_the_reason(site: Path) -> None:
    points = {"a": "bad.b", "no-module": "absent.no_module", "deep": "bad.b.deep"}
    package(site, "bad", {"gencli.models": points, "gencli.recipes": {"r": "bad"}}, {"bad/b.py": MODEL})
    why = clashing("a", "no-module", "deep", "r")
    assert "called as its file, which is 'b'" in why["a"] and "'absent.no_module'" in why["no-module"]
    assert "'bad.b.deep'" in why["deep"] and "no package with .toml" in why["r"]


def test_an_attribute_chooses_among_several_classes(site: Path) -> None:
    text = MODEL + MODEL.replace("Mine", "Other")
    package(site, "ok", {"gencli.models": {"both": "ok.both:Other"}}, {"ok/both.py": text})
    forget()
    assert registry.load("models", "both").__name__ == "Other"
