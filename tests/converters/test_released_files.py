"""Files of other programs: NVIDIA's pickles without running them, lists of averages, what does not fit, and the command."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from nvidia import faked, nvidia_file, tree
from released import TWINS, built, converter, file_of
from saved import Creates
from shell import empty

from gencli import registry
from gencli.bundle import Run
from gencli.cli.convert import READS
from gencli.converters import _pickles
from gencli.converters._official import Official
from gencli.errors import GencliError

TINY = {
    "name": "edm",
    "net": {"name": "song-unet", "width": 8, "mults": [1, 2], "blocks": 1, "attention": [4]},
}


@pytest.mark.parametrize("name", ["edm-ncsnpp", "edm2"])
def test_nvidia_files_are_read_and_their_code_is_not_run(name, tmp_path):
    twin, mark = TWINS[name], tmp_path / "made-by-the-file"
    one = converter(twin.kind)
    run = built(twin.model, twin.spec)
    state = {key: value.detach() for key, value in one.sent(run.model).items()}
    if name == "edm2":
        state = {key: value.half() for key, value in state.items()}  # as released
    kind = {"edm": "EDMPrecond", "edm2": "Precond"}[twin.kind]
    file = nvidia_file(tmp_path / "net.pkl", {"ema": (kind, state)}, f"import os; os.mkdir({str(mark)!r})")
    done = one.bring(file, None, tmp_path, "ours", "typed", verify=True)
    assert [check.error for check in done.checks] == [0.0] and not mark.exists()
    for key, value in one.sent(Run.load(done.path).model).items():
        assert torch.equal(value.to(state[key].dtype), state[key]), key


def test_anything_else_in_a_pickle_is_refused_by_name_and_never_called(tmp_path):
    mark, state = tmp_path / "made-by-the-pickle", {"weight": torch.ones(2)}
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"ema": Creates(mark)}))
    with faked():
        (tmp_path / "b.pkl").write_bytes(pickle.dumps({"ema": tree(state, "EDMPrecond"), "extra": Creates(mark)}))
    with (tmp_path / "c.pkl").open("wb") as file:
        pickler = pickle.Pickler(file)
        pickler.persistent_id = lambda thing: "outside" if thing == "here" else None  # type: ignore[method-assign]
        pickler.dump({"ema": "here"})
    torch.save({"weight": Creates(mark)}, tmp_path / "storage")
    inner = (tmp_path / "storage").read_bytes()  # a file in the file
    inner = b"ctorch.storage\n_load_from_bytes\n(B" + len(inner).to_bytes(4, "little") + inner + b"tR."
    (tmp_path / "d.pkl").write_bytes(inner)
    eval_ = b'cbuiltins\neval\n(S\'__import__("os").mkdir("' + str(mark).encode() + b"\")'\ntR."
    (tmp_path / "e.pkl").write_bytes(eval_)
    (tmp_path / "f.pkl").write_bytes(b"ctorch.nn.modules.container\n__builtins__.eval\n.")
    said = {"a": "posix.mkdir", "b": "posix.mkdir", "c": "outside", "d": "damaged", "e": "builtins.eval", "f": "eval"}
    for name, words in said.items():
        with pytest.raises(GencliError, match=words):
            _pickles.read(tmp_path / f"{name}.pkl")
    assert not mark.exists()


def test_a_pickle_of_another_network_is_named(tmp_path):
    file = nvidia_file(tmp_path / "vp.pkl", {"ema": ("VPPrecond", {"model.map_layer0.weight": torch.ones(2, 2)})})
    with pytest.raises(GencliError, match="holds a VPPrecond, not a EDMPrecond"):
        converter("edm").tensors(file)
    (tmp_path / "empty.pkl").write_bytes(pickle.dumps({"G": None}))
    with pytest.raises(GencliError, match="a dict with G: no module under 'ema'"):
        converter("edm").tensors(tmp_path / "empty.pkl")


def test_averages_without_names_are_in_the_order_of_the_parameters(tmp_path):
    twin = TWINS["score-sde-ncsnpp"]
    one = converter("score-sde")
    state = file_of(one, built(twin.model, twin.spec), tmp_path / "x.pth")
    raw = {f"module.{key}": torch.zeros_like(value) if value.ndim > 1 else value for key, value in state.items()}
    fixed = "all_modules.0.W"  # not averaged, for it is not trained
    shadow = [value for key, value in state.items() if key != fixed]
    held = {
        "model": {**raw, "module.sigmas": torch.tensor([50.0, 0.01])},
        "ema": {"decay": 0.999, "shadow_params": shadow},
    }
    torch.save(held, tmp_path / "checkpoint.pth")
    read = one.tensors(tmp_path / "checkpoint.pth")
    assert read.keys() == {*state, "sigmas"} and all(torch.equal(read[key], value) for key, value in state.items())
    torch.save({**held, "ema": {"shadow_params": shadow[::-1]}}, tmp_path / "bad.pth")
    with pytest.raises(GencliError, match="not in the order of its"):
        one.tensors(tmp_path / "bad.pth")


@pytest.mark.parametrize("name", ["guided-diffusion", "edm-ddpmpp", "u-vit", "score-sde-ddpmpp", "ncsnv2"])
def test_what_is_missing_surplus_or_of_another_shape_is_named(name, tmp_path):
    twin = TWINS[name]
    one = converter(twin.kind, **twin.settings)
    state = file_of(one, built(twin.model, twin.spec), tmp_path / "x.pt")
    key = [key for key in state if key.endswith("weight") and state[key].ndim > 1][-3]
    for change, words in (
        ({"extra.weight": torch.ones(3)}, "surplus extra.weight"),
        ({key: torch.ones(3)}, f"of another shape {key}"),
        ({key: None}, f"missing {key}"),
    ):
        given = {name: value for name, value in {**state, **change}.items() if value is not None}
        torch.save(given, tmp_path / "bad.pt")
        with pytest.raises(GencliError, match=words) as caught:
            one.bring(tmp_path / "bad.pt", None, tmp_path / "runs", "x", "typed", verify=True)
        assert "\n" not in str(caught.value)
    assert not [*(tmp_path / "runs").glob("*/config.json")]


def test_every_format_that_reads_is_named_by_the_command():
    kinds = {name: registry.load("converters", name) for name in registry.entries("converters")}
    official = {name for name, kind in kinds.items() if issubclass(kind, Official)}
    assert official <= {*READS} and len(official) >= 11


def test_the_command_makes_a_run_that_samples_and_goes_back(tmp_path, capsys):
    one = converter("edm")
    with empty(tmp_path, capsys) as shell:
        state = file_of(one, built(TINY, TWINS["edm-ddpmpp"].spec), tmp_path / "theirs.pt")
        done = shell.fine("convert", "theirs.pt", "--from", "edm", "--name", "ours")
        assert done.out == "checkpoints/ours\n" and "tensors, written back, bit-equal, maximum error 0" in done.err
        assert "not in the file, taken from the released model: dropout 0.05" in done.err
        shell.fine("sample", "ours", "-n", "2", "--steps", "2", "--class", "3", "--out", "drawn")
        assert len([*(tmp_path / "drawn").glob("0*.png")]) == 2
        again = shell.fine("convert", "ours", "--to", "edm", "--out", "back.pt")
        assert again.out == "back.pt\n"
        back = torch.load(tmp_path / "back.pt", weights_only=True)
        assert back.keys() == state.keys() and all(torch.equal(back[key], value) for key, value in state.items())
        run = Run.load(tmp_path / "checkpoints" / "ours")
        x, level, label = torch.randn(2, 3, 16, 16), torch.tensor([-1.0, 0.4]), torch.tensor([1, 2])
        with torch.no_grad():
            out = run.model.net(x, level, label=label)
        torch.save({"x": x, "level": level, "label": label, "out": out}, "wanted.pt")
        shell.fine("convert", "theirs.pt", "--from", "edm", "--name", "again", "--reference", "wanted.pt")
        noted = json.loads((tmp_path / "checkpoints/again/config.json").read_text())["converted"]["maximum_errors"]
        assert noted["outputs for wanted.pt"] < 1e-5
        torch.save({"x": x, "level": level, "label": label, "out": out + 1}, "wanted.pt")
        refused = shell("convert", "theirs.pt", "--from", "edm", "--name", "third", "--reference", "wanted.pt")
        assert refused.code == 1 and "outputs for wanted.pt differ by" in refused.err
        assert not (tmp_path / "checkpoints" / "third").exists()
        shell("convert", "theirs.pt", "--from", "pt", "--codec", "x").fails(
            "--codec goes with a released model's format"
        )
        shell("convert", "ours", "--to", "edm", "--image-size", "3").fails("--image-size goes with --from")
        shell("convert", "ours", "--to", "dit").fails("edm with the network song-unet", "dit knows nothing")
        shell("convert", "theirs.pt", "--from", "dit").fails("missing x_embedder.proj.weight")


def test_a_recipe_says_what_the_file_does_not(tmp_path):
    twin = TWINS["score-sde-ddpmpp"]
    file_of(converter("score-sde"), built(twin.model, twin.spec), tmp_path / "x.pt")
    asked = {"recipe": str(tmp_path / "own.toml")}
    (tmp_path / "own.toml").write_text("# sub-VP\n[model]\nname = 'score-sde'\nsde = 'sub-vp'\n")
    run = Run.load(converter("score-sde", **asked).bring(tmp_path / "x.pt", None, tmp_path, "ours", "", True).path)
    assert run.model.config.sde == "sub-vp" and run.model.net.config.width == 16


def test_a_run_of_the_same_network_says_what_the_file_does_not(tmp_path):
    twin = TWINS["edm2"]
    one, other = converter("edm2"), converter("edm")
    state = file_of(one, built(twin.model, twin.spec), tmp_path / "x.pt")
    like = Run.load(one.bring(tmp_path / "x.pt", None, tmp_path, "like", "", True).path)
    changed = {key: value + 1 for key, value in state.items()}
    torch.save(changed, tmp_path / "y.pt")
    run = Run.load(one.bring(tmp_path / "y.pt", like, tmp_path, "ours", "", True).path)
    back = one.sent(run.model)
    assert all(torch.equal(back[key], value) for key, value in changed.items())
    assert torch.equal(back["logvar_linear.weight"], changed["logvar_linear.weight"])  # what training alone needs, too
    with pytest.raises(GencliError, match="edm2 with the network edm2-unet, of which the format edm knows nothing"):
        other.bring(tmp_path / "y.pt", like, tmp_path, "x", "", True)
