"""Every recipe parses, means what it says, and its miniature trains, saves, loads and draws."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import toml

from gencli import bundle, recipe, registry
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Autoencoder, Classifier, Rng
from gencli.data import open_table
from gencli.errors import GencliError
from gencli.evaluation.conditions import conditions_for
from gencli.training.session import Session, resolve

NAMES = [*recipe.names()]
each_recipe = pytest.mark.parametrize("name", NAMES)


def learned(table: dict[str, Any]) -> bool:
    """Whether a recipe's data come through another run's codec."""
    return any(codec.get("name") == "learned" for codec in table.get("codecs", []))


@each_recipe
def test_a_recipe_says_what_it_is_and_resolves(name: str) -> None:
    path = recipe.names()[name]
    assert path.read_text("utf-8").startswith("# ") and 10 < len(recipe.summary(path)) <= 120
    table = recipe.load(name)
    made = resolve(table)
    assert resolve(made) == made, "what is spelt out means the same again"
    assert made["model"]["name"] in registry.entries("models") and table["recipe"] == name
    if "sample" in table:
        registry.entry("samplers", table["sample"]["name"])


@each_recipe
def test_a_recipe_is_called_by_its_model(name: str) -> None:
    model = recipe.load(name)["model"]["name"]
    assert name == model or name.startswith(f"{model}-")


@each_recipe
def test_a_miniature_changes_no_name_of_a_setting(name: str) -> None:
    table = tomllib.loads(recipe.names()[name].read_text("utf-8"))
    assert "smoke" in table, "a recipe has a [smoke] table"
    resolve(recipe.load(name, smoke=True))


@each_recipe
def test_the_miniature_trains_saves_loads_and_draws(name: str, tmp_path: Path) -> None:
    table = recipe.load(name, smoke=True)
    if learned(table):
        pytest.skip("its data are the codes of another run")
    if table.get("data", {}).get("name") not in ("digits", "toy2d", None):
        table = merge(table, {"data": {"name": "digits"}})  # the others may have to be downloaded
    made = resolve(merge(table, {"train": {"steps": 2, "save_every": 2, "sample_every": 1000, "precision": "fp32"}}))
    began = time.perf_counter()
    session = Session(made, open_table(made["data"]), tmp_path)
    events = list(session.events())
    assert [event.step for event in events if event.kind == "step"] == [1, 2]
    loaded = Run.load(session.folder)
    assert loaded.step == 2
    samplers = [name for interface, name in bundle.DEFAULT_SAMPLERS if isinstance(loaded.model, interface)]
    if samplers:
        x = loaded.sample(Rng.rows([0, 1]), conditions_for(loaded, [0, 1]))["x"]
    elif isinstance(loaded.model, Classifier):
        batch = loaded.encode(session.data.split("test").batch(torch.arange(2)), Rng.rows([0, 1]))
        sigma = None if getattr(loaded.model, "clean_only", False) else torch.tensor(1.0)
        logits = loaded.model.class_logits(batch["x"], sigma)
        assert logits.shape == (2, loaded.model.spec.cond["label"].vocab) and torch.isfinite(logits).all()
        x = batch["x"]
    else:
        assert isinstance(loaded.model, Autoencoder), "neither drawn from nor an autoencoder"
        batch = loaded.encode(session.data.split("test").batch(torch.arange(2)), Rng.rows([0, 1]))
        x = loaded.decode({"x": loaded.model.decode(loaded.model.encode(batch["x"]))})["x"]
    assert x.shape == (2, *loaded.data_spec.x.shape) and torch.isfinite(x.float()).all()
    assert time.perf_counter() - began < 15, "a miniature takes a second or two on a quiet machine"


# --------------------------------------------------------------------------------------------------------- the reader


BASE = {"model": {"name": "ddpm", "timesteps": 50}, "train": {"steps": 9}}


def refused(path: Path, *says: str) -> None:
    with pytest.raises(GencliError) as caught:
        recipe.load(str(path))
    for text in says:
        assert text in f"{caught.value.message} | {caught.value.hint}"


def test_a_file_is_a_recipe_and_its_miniature_goes_on_top(tmp_path: Path) -> None:
    path = toml(tmp_path / "mine.toml", {**BASE, "smoke": {"train": {"steps": 2}}})
    assert recipe.load(str(path)) == {**BASE, "recipe": "mine"}
    assert recipe.load(str(path), smoke=True)["train"] == {"steps": 2}
    assert recipe.summary(path) == "tiny"


def test_a_broken_recipe_is_named_with_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[model\n")
    refused(path, "broken.toml is not valid TOML")
    refused(toml(path, {"modle": {"name": "ddpm"}}), "unknown table 'modle'", "model, data")
    refused(toml(path, {"train": {"steps": 2}}), "names no model")
    refused(tmp_path / "absent.toml", "no recipe file")


def test_a_name_that_is_neither_recipe_nor_model_is_answered() -> None:
    with pytest.raises(GencliError, match="unknown model or recipe 'dpdm'") as caught:
        recipe.load("dpdm")
    assert "ddpm" in caught.value.hint


def test_a_laptop_recipe_for_the_data_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml(tmp_path / "ddpm.toml", BASE)
    for name, laptop in (("ddpm-digits", True), ("ddpm-cifar10", False)):
        path = toml(tmp_path / f"{name}.toml", BASE)
        path.write_text(f"# x\nlaptop = {str(laptop).lower()}\n" + path.read_text())
    monkeypatch.setattr(recipe, "FOLDER", tmp_path)
    recipe.names.cache_clear()
    try:
        chosen = {data: recipe.load("ddpm", data=data)["recipe"] for data in ("digits", "cifar10", "mnist", None)}
        assert chosen == {"digits": "ddpm-digits", "cifar10": "ddpm", "mnist": "ddpm", None: "ddpm"}
        assert recipe.load("ddpm-cifar10")["recipe"] == "ddpm-cifar10"
    finally:
        monkeypatch.undo()
        recipe.names.cache_clear()
