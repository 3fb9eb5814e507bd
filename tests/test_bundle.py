"""A run on disk gives back the run in memory; what is damaged, missing or too new is one clear line."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny import DIGITS, table
from torch import nn

from gencli import bundle, files, runs
from gencli.bundle import FORMAT, Run, load_tensors, read_config, read_tensors, spec_from, spec_to, state_of
from gencli.core import Field, Rng, Spec
from gencli.data import open_table
from gencli.errors import GencliError
from gencli.training.session import resolve
from gencli.training.sources import nest


def fresh(model: str, codec: Run | None = None) -> Run:
    """An untrained run with weights that are nowhere zero."""
    recipe = resolve(table(model))
    run = Run.build(recipe, open_table(DIGITS).spec, codec)
    with torch.no_grad():
        for i, p in enumerate(run.model.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.05)
    run.model.eval()
    run.config["recipe"] = recipe
    return run


def save(run: Run, folder: Path, codec: Run | None = None, **over: Any) -> Path:
    """Write a run as `docs/runs.md` says."""
    folder.mkdir(parents=True)
    config = {
        "format": FORMAT, "gencli": "0", "name": folder.name, "created": datetime.datetime.now(datetime.UTC).isoformat(),
        "command": "gencli", "recipe": run.config["recipe"], "spec": spec_to(run.spec), "sources": [], "adapters": [],
        "data": {"name": "digits", "spec": spec_to(run.data_spec), "hash": "0", "items": {"train": 1, "test": 1}},
        "parameters": 1, "step": 7, "codec": codec.name if codec else None, "codec_models": [], "model_names": [],
    }  # fmt: skip
    files.atomic_json(folder / "config.json", {**config, **over})
    skip = run.model.training_only
    kept = {k: v for k, v in state_of(run.model).items() if not skip or not k.startswith(skip)}
    save_file(kept, folder / "model.safetensors")
    if codec:
        nest(codec, folder / "codec")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save(fresh("ddpm"), tmp_path / "checkpoints" / "ddpm-digits")


def refused(call: Callable[[], Any], *says: str) -> GencliError:
    with pytest.raises(GencliError) as caught:
        call()
    for text in says:
        assert text in f"{caught.value.message} | {caught.value.hint}"
    assert "\n" not in caught.value.message and caught.value.hint and caught.value.code == 2
    return caught.value


@pytest.mark.parametrize("model", ["ddpm", "pixelcnn", "gated-pixelcnn"])
def test_a_saved_run_draws_what_the_run_in_memory_draws(model: str, tmp_path: Path) -> None:
    run = fresh(model)
    loaded = Run.load(save(run, tmp_path / "run"))
    settings = {"steps": 3} if model == "ddpm" else {}
    cond = {"label": torch.tensor([3, 1])} if "label" in run.spec.cond else {}
    one, two = (r.sample(Rng.rows([0, 1]), cond, r.sampler(None, settings))["x"] for r in (run, loaded))
    assert torch.equal(one, two) and one.dtype == torch.uint8 and one.shape == (2, 1, 8, 8)
    assert one.float().std() > 0, "samples of one colour compare nothing"
    assert loaded.step == 7 and loaded.name == "run" and loaded.spec == run.spec
    assert not loaded.model.training and not any(p.requires_grad for p in loaded.model.parameters())


def test_a_prior_carries_its_codec(tmp_path: Path) -> None:
    codec = Run.load(save(fresh("vqvae"), tmp_path / "vqvae"))
    prior = fresh("gated-pixelcnn", codec)
    loaded = Run.load(save(prior, tmp_path / "prior", codec))
    (tmp_path / "vqvae").rename(tmp_path / "elsewhere")
    moved = Run.load(tmp_path / "prior")
    for run in (prior, loaded, moved):
        assert run.spec.x == Field("codes", (4, 4), vocab=16)
    drawn = [r.sample(Rng.rows([5]), {"label": torch.tensor([2])})["x"] for r in (prior, loaded, moved)]
    assert drawn[0].shape == (1, 1, 8, 8) and torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


def test_a_run_without_a_sampler_says_what_is_missing(tmp_path: Path) -> None:
    run = Run.load(save(fresh("vqvae"), tmp_path / "vqvae-digits"))
    refused(run.sampler, "cannot be sampled", "gencli train gated-pixelcnn --codec vqvae-digits")


def test_the_samplers_settings_come_from_the_recipe_then_from_the_caller() -> None:
    run = fresh("ddpm")
    run.config["recipe"]["sample"] = {"name": "ancestral", "steps": 5, "guidance": 1.5}
    assert run.sampler().config.steps == 5 and run.guidance == 1.5
    assert run.sampler(None, {"steps": 4}).config.steps == 4
    assert run.sampler("ddim").config.steps == 50, "another sampler does not take them over"
    refused(lambda: run.sampler("next-token"), "NextToken")


# ---------------------------------------------------------------------------------------------------- what may be wrong


def test_a_newer_format_is_refused_with_the_version_that_made_it(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    files.atomic_json(folder / "config.json", {**config, "format": FORMAT + 1, "gencli": "9.9"})
    refused(lambda: Run.load(folder), f"format {FORMAT + 1}", "gencli 9.9", f"up to {FORMAT}", "upgrade")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"format": "new"}', b"\xff\xfe\x00"])
def test_a_damaged_config_names_the_file(folder: Path, damage: bytes) -> None:
    (folder / "config.json").write_bytes(damage)
    refused(lambda: Run.load(folder), "config.json is damaged")
    assert runs.every() == [] or all(run.path != folder for run in runs.every())


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights_name_the_file(folder: Path, keep: int) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    refused(lambda: Run.load(folder), "model.safetensors is damaged")


def test_weights_full_of_rubbish_name_the_file(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\xff" * 4096)
    refused(lambda: Run.load(folder), "model.safetensors is damaged")


def test_what_is_missing_is_named(folder: Path) -> None:
    refused(lambda: Run.load(folder.parent), "has no config.json")
    (folder / "model.safetensors").unlink()
    refused(lambda: Run.load(folder), "model.safetensors is missing")


def test_weights_of_other_settings_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["recipe"]["model"]["net"]["width"] = 16
    files.atomic_json(folder / "config.json", config)
    refused(lambda: Run.load(folder), "does not fit the model", "other settings")


def test_a_model_that_no_longer_exists_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["recipe"]["model"] = {"name": "ddmp"}
    files.atomic_json(folder / "config.json", config)
    refused(lambda: Run.load(folder), "'ddmp'", "ddpm")


# ------------------------------------------------------------------------------------------------------------- tensors


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.out.weight = self.into.weight
        self.register_buffer("nothing", torch.zeros(0))


def test_tied_tensors_are_saved_once_and_stay_tied(tmp_path: Path) -> None:
    one, two = Tied(), Tied()
    assert {*state_of(one)} == {"into.weight", "nothing"}
    save_file(state_of(one), tmp_path / "w.safetensors", metadata={"step": "3"})
    assert bundle.load_weights(two, tmp_path / "w.safetensors") == {"step": "3"}
    assert torch.equal(two.out.weight, one.into.weight) and two.out.weight is two.into.weight


def test_tensors_that_are_missing_or_unknown_or_of_another_shape_are_refused() -> None:
    model = nn.Linear(3, 2)
    good = state_of(model)
    refused(lambda: load_tensors(model, {"weight": good["weight"]}, "w"), "1 missing", "'bias'")
    refused(lambda: load_tensors(model, {**good, "extra": good["bias"]}, "w"), "1 unexpected", "'extra'")
    refused(lambda: load_tensors(model, {**good, "weight": torch.zeros(2, 4)}, "w"), "1 unexpected", "'weight'")
    load_tensors(model, {"weight": good["weight"]}, "w", allow_missing=("bias",))


def test_saved_tensors_are_copies_on_the_cpu() -> None:
    model = nn.Linear(3, 3)
    model.weight.data = model.weight.data.t()
    state = state_of(model)
    assert state["weight"].is_contiguous() and not state["weight"].requires_grad


def test_a_spec_survives_json() -> None:
    label = Field("label", (), vocab=3, names=("a", "b", "c"))
    spec = Spec(Field("image", (3, 4, 6), vocab=256, range=(-1.0, 1.0), rate=2.0, ragged=True), {"label": label})
    assert spec_from(json.loads(json.dumps(spec_to(spec)))) == spec


def test_tensors_are_read_with_their_metadata(folder: Path) -> None:
    tensors, metadata = read_tensors(folder / "model.safetensors")
    assert tensors and metadata == {} and read_config(folder)["format"] == FORMAT


# -------------------------------------------------------------------------------------------------------- finding runs


def test_runs_are_found_by_folder_name_model_and_age(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, day in (("a", 2), ("b", 3), ("c", 1)):
        save(fresh("ddpm"), tmp_path / "checkpoints" / name, created=f"2026-01-0{day}T00:00:00+00:00")
    own = [run for run in runs.every() if not run.shipped]
    assert [run.name for run in own] == ["b", "a", "c"], "newest first, by what config.json says"
    assert runs.named("a").name == runs.named("checkpoints/a").name == "a"
    (tmp_path / "checkpoints" / "b" / "model.safetensors").unlink()
    assert runs.newest(lambda run: run.model == "ddpm").name == "a", "one without weights cannot be sampled"  # type: ignore[union-attr]
    refused(lambda: runs.named("zz-nothing"), "no run 'zz-nothing'", "looked in checkpoints")
    refused(lambda: runs.named("dppm"), "did you mean", "ddpm")
