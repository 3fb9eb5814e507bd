"""`gencli convert`: what it prints, where it writes, and how it refuses."""

import json

import pytest
import torch
from saved import Creates, ddpm, saved
from shell import copied, empty
from tiny import table

from gencli import registry
from gencli.bundle import Run
from gencli.cli import convert
from gencli.converters import _base


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    codec = Run.load(saved(folder / "checkpoints", table("vqvae")))
    saved(folder / "checkpoints", table("gated-pixelcnn"), codec_run=codec)
    saved(folder / "checkpoints", ddpm())
    return folder


@pytest.fixture
def shell(made, tmp_path, capsys):
    copied(made, tmp_path)
    with empty(tmp_path, capsys) as shell:
        yield shell


def test_what_can_be_read_is_what_reads() -> None:
    known = registry.entries("converters")
    assert {name for name in known if registry.load("converters", name).reads} == {*convert.READS}


def test_there_and_back_with_the_next_command_each_time(shell, tmp_path):
    done = shell.fine("convert", "ddpm-digits", "--to", "pt")
    assert done.out == "converted/ddpm-digits.pt\n"
    assert "verified: 145 tensors, bit-equal, maximum error 0\n" in done.err
    following = done.err.splitlines()[-1].removeprefix("next: gencli ")
    assert following == "convert converted/ddpm-digits.pt --from pt"
    back = shell.fine(*following.split())
    assert back.out == "checkpoints/ddpm-digits-2\n" and back.err.endswith("next: gencli sample ddpm-digits-2\n")
    pictures = []
    for name in ("ddpm-digits", "ddpm-digits-2"):
        out = shell.fine("sample", name, "-n", "2", "--out", name, "--steps", "3").out.strip()
        pictures.append([path.read_bytes() for path in sorted((tmp_path / out).glob("0*.png"))])
    assert pictures[0] == pictures[1] and pictures[0]
    assert (
        "gencli convert converted/ddpm-digits.pt --from pt"
        in (tmp_path / "checkpoints/ddpm-digits-2/README.md").read_text()
    )


def test_a_model_means_its_own_newest_run_not_a_prior_over_it(shell):
    assert shell.fine("convert", "vqvae", "--to", "safetensors").out == "converted/vqvae-digits.safetensors\n"


def test_json_and_quiet(shell):
    document = shell.fine("convert", "ddpm", "--to", "safetensors", "--json").document
    assert document["path"] == "converted/ddpm-digits.safetensors" and document["unverified"] is None
    assert document["verified"] == [{"what": "145 tensors", "maximum_error": 0.0, "allowed": 0.0}]
    quiet = shell.fine("convert", "ddpm", "--to", "pt", "--quiet", "--out", "x/y.pt")
    assert (quiet.out, quiet.err) == ("x/y.pt\n", "")


def test_nothing_is_overwritten_unless_asked(shell, tmp_path):
    for kind, place in (("pt", "converted/ddpm-digits.pt"), ("diffusers", "converted/ddpm-digits-diffusers")):
        shell.fine("convert", "ddpm", "--to", kind, "--no-verify")
        shell("convert", "ddpm", "--to", kind, "--no-verify").fails(place, "is there already", "--overwrite")
        shell.fine("convert", "ddpm", "--to", kind, "--no-verify", "--overwrite")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years")
    refused = shell("convert", "ddpm", "--to", "diffusers", "--out", "precious/thesis.txt", "--overwrite")
    refused.fails("was not made by `gencli convert`")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years"
    shell("convert", "ddpm", "--to", "diffusers", "--out", "precious", "--overwrite").fails("was not made by")


def test_not_verified_is_said(shell, monkeypatch):
    assert "not verified: --no-verify\n" in shell.fine("convert", "ddpm", "--to", "pt", "--no-verify").err
    monkeypatch.setattr(_base, "installed", lambda module: False)
    said = shell.fine("convert", "ddpm", "--to", "diffusers")
    assert "not verified: diffusers is not installed (pip install 'gencli[peers]')\n" in said.err
    document = shell.fine("convert", "ddpm", "--to", "diffusers", "--overwrite", "--json").document
    assert document["verified"] == [] and document["unverified"].startswith("diffusers is not installed")


def test_foreign_weights_like_a_run_or_a_recipe(shell, tmp_path):
    state = Run.load(tmp_path / "checkpoints" / "ddpm-digits").model.state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, "theirs.pt")
    shell("convert", "theirs.pt", "--from", "pt").fails("theirs.pt holds 145 tensors", "--like")
    done = shell.fine(
        "convert", "theirs.pt", "--from", "pt", "--like", "ddpm-digits", "--name", "Theirs!", "--out", "runs"
    )
    assert done.out == "runs/theirs\n" and done.err.endswith("next: gencli sample runs/theirs\n")
    assert "145 tensors under 'state_dict' fit ddpm-digits" in done.err
    shell("convert", "theirs.pt", "--from", "pt", "--like", "vqvae").fails("does not fit vqvae", "missing ")
    recipe = tmp_path / "own.toml"
    tables = json.loads((tmp_path / "checkpoints/ddpm-digits/config.json").read_text())["recipe"]
    net = tables["model"]["net"]
    recipe.write_text(
        "# tiny\n[model]\nname = 'ddpm'\ntimesteps = 20\n[model.net]\nname = 'unet'\n"
        + "\n".join(f"{key} = {json.dumps(net[key])}" for key in ("width", "mults", "blocks", "attention", "groups"))
        + "\n[data]\nname = 'digits'\nimage_size = 8\n"
    )
    like = shell.fine(
        "convert", "theirs.pt", "--from", "pt", "--like", str(recipe), "--name", "again", "--json"
    ).document
    config = json.loads((tmp_path / "checkpoints" / "again" / "config.json").read_text())
    assert like["run"] == "again" and config["data"]["items"]["train"] > 1000
    shell.fine("sample", "again", "-n", "1", "--steps", "2")


MISTAKES = {
    (): "needs a run or a path",
    ("ddpm",): "either --to or --from",
    ("ddpm", "--to", "pt", "--from", "pt"): "either --to or --from",
    ("ddpm", "--to", "safetensor"): "did you mean safetensors",
    ("dppm", "--to", "pt"): "no run 'dppm'",
    ("nowhere.pt", "--from", "pt"): "no file 'nowhere.pt'",
    ("nowhere", "--from", "diffusers"): "no folder 'nowhere'",
    ("x.onnx", "--from", "onnx"): "only written",
    ("x.pt", "--from", "pth"): "unknown format 'pth'",
    ("ddpm", "--to", "pt", "--like", "ddpm"): "--like goes with --from",
    ("ddpm", "--to", "pt", "--name", "x"): "--name goes with --from",
    ("x.pt", "--from", "pt", "--overwrite"): "--overwrite goes with --to",
    ("vqvae", "--to", "diffusers"): "is a vqvae",
    ("gated-pixelcnn", "--to", "diffusers"): "is a gated-pixelcnn",
    ("gated-pixelcnn", "--to", "onnx"): "draws its numbers one after the other",
}


@pytest.mark.parametrize("args", MISTAKES, ids=" ".join)
def test_mistakes_are_one_line_with_the_next_step(args, shell):
    shell("convert", *args).fails(MISTAKES[args])


def test_code_in_a_pt_file_is_refused_and_never_run(shell, tmp_path):
    torch.save(Creates(tmp_path / "made-by-the-pickle"), "bad.pt")
    shell("convert", "bad.pt", "--from", "pt").fails("bad.pt holds code", "mkdir")
    assert not (tmp_path / "made-by-the-pickle").exists() and len([*(tmp_path / "checkpoints").iterdir()]) == 3


def test_a_run_without_weights_is_named(shell, tmp_path):
    (tmp_path / "checkpoints" / "ddpm-digits" / "model.safetensors").unlink()
    shell("convert", "ddpm-digits", "--to", "pt").fails("run ddpm-digits has no weights yet")
