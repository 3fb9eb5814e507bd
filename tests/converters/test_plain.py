"""Safetensors and .pt: there and back bit for bit, foreign weights only where they fit, never any code."""

import hashlib
import json
import pickle

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from saved import Creates, ddpm, saved
from tiny import resumed, table

from gencli.bundle import Run, read_tensors
from gencli.converters._base import Packed
from gencli.converters.pt import Pt, load
from gencli.converters.safetensors import Safetensors
from gencli.core import Rng
from gencli.errors import GencliError

CONVERTERS = {"pt": Pt, "safetensors": Safetensors}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bits(folder):
    return {key: value.numpy().tobytes() for key, value in Packed.of(folder).tensors.items()}


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    """A prior over the codes of a codec."""
    place = tmp_path_factory.mktemp("nested")
    codec = Run.load(saved(place, table("vqvae")))
    return saved(place, table("gated-pixelcnn"), codec_run=codec)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("plain"), ddpm())


@pytest.mark.parametrize("kind", CONVERTERS)
def test_there_and_back_is_bit_equal_and_draws_the_same(kind, nested, tmp_path):
    converter = CONVERTERS[kind].make()
    run = Run.load(nested)
    file = converter.export(run, tmp_path / f"x{converter.suffix}", verify=True)
    assert [check.error for check in file.checks] == [0.0]
    back = converter.bring(file.path, None, tmp_path / "runs", "back", "typed", verify=True)
    assert back.path.name == "back" and bits(back.path) == bits(nested) and (back.path / "codec").is_dir()
    rows = Rng.rows([1, 2])
    assert torch.equal(Run.load(back.path).sample(rows)["x"], run.sample(rows)["x"])


def test_pt_to_run_to_safetensors_to_run_is_bit_equal(plain, tmp_path):
    pt, safe = Pt.make(), Safetensors.make()
    a = pt.export(Run.load(plain), tmp_path / "a.pt", True).path
    one = pt.bring(a, None, tmp_path, None, "typed", True).path
    b = safe.export(Run.load(one), tmp_path / "b.safetensors", True).path
    two = safe.bring(b, None, tmp_path, None, "typed", True).path
    assert bits(plain) == bits(one) == bits(two) and one != two
    config = json.loads((two / "config.json").read_text())
    assert config["converted"]["from"] == "safetensors" and config["name"] == two.name
    assert config["recipe"] == json.loads((plain / "config.json").read_text())["recipe"]


def test_an_imported_run_is_not_resumed_which_would_replace_its_weights(plain, tmp_path):
    file = Pt.make().export(Run.load(plain), tmp_path / "a.pt", True).path
    brought = Pt.make().bring(file, None, tmp_path, None, "typed", True).path
    before = bits(brought)
    with pytest.raises(GencliError, match=r"was converted from .*no state to resume from"):
        resumed(brought)
    assert bits(brought) == before


def test_a_safetensors_file_is_the_same_bytes_every_time_and_says_what_it_is(plain, tmp_path):
    made = [Safetensors.make().export(Run.load(plain), tmp_path / f"{i}.safetensors", True).path for i in (1, 2)]
    assert digest(made[0]) == digest(made[1])
    with safe_open(made[0], "pt") as file:
        assert json.loads(file.metadata()["gencli"])[""]["recipe"]["model"]["name"] == "ddpm"


def test_a_pt_file_is_plain_values(plain, tmp_path):
    path = Pt.make().export(Run.load(plain), tmp_path / "a.pt", True).path
    held = torch.load(path, weights_only=True)
    assert held["format"] == 1 and json.loads(held["config"])[""]["data"]["name"] == "digits"
    assert held["state_dict"].keys() == Run.load(plain).model.state_dict().keys()


# --------------------------------------------------------------------------------------------------------------- foreign


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [(None, ""), ("state_dict", "module."), ("model", "_orig_mod.module."), ("ema", "module._orig_mod.")],
)
def test_foreign_weights_that_fit_are_taken(wrap, prefix, plain, tmp_path):
    run = Run.load(plain)
    state = {prefix + key: value for key, value in run.model.state_dict().items()}
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({wrap: state, "step": 7} if wrap else state, tmp_path / "x.pt")
    if wrap == "ema":
        torch.save({"model": other, "ema": state}, tmp_path / "x.pt")
    done = Pt.make().bring(tmp_path / "x.pt", Run.load(plain), tmp_path, "got", "typed", True)
    assert bits(done.path) == bits(plain)
    assert Run.load(done.path).step == 0, "how long they were trained is not known"


def test_foreign_safetensors_are_taken_too(plain, tmp_path):
    save_file(read_tensors(plain / "model.safetensors")[0], tmp_path / "x.safetensors")
    done = Safetensors.make().bring(tmp_path / "x.safetensors", Run.load(plain), tmp_path, None, "typed", True)
    assert bits(done.path) == bits(plain)


def test_foreign_weights_of_other_types_are_stored_in_the_models(plain, tmp_path):
    state = {key: value.half() for key, value in Run.load(plain).model.state_dict().items()}
    torch.save(state, tmp_path / "x.pt")
    done = Pt.make().bring(tmp_path / "x.pt", Run.load(plain), tmp_path, None, "typed", True)
    got = read_tensors(done.path / "model.safetensors")[0]
    assert all(torch.equal(got[key], value.float()) for key, value in state.items())


def test_what_does_not_fit_is_named(plain, tmp_path):
    state = dict(Run.load(plain).model.state_dict())
    state["net.extra"] = state.pop("net.conv_in.bias")
    state["net.conv_out.bias"] = torch.zeros(5)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(GencliError) as caught:
        Pt.make().bring(tmp_path / "x.pt", Run.load(plain), tmp_path / "runs", None, "typed", True)
    for word in ("missing net.conv_in.bias", "unexpected net.extra", "net.conv_out.bias (5,) for (1,)", "ddpm-digits"):
        assert word in caught.value.message
    assert not list((tmp_path / "runs").glob("*"))


def test_foreign_weights_need_to_be_explained(plain, tmp_path):
    torch.save(Run.load(plain).model.state_dict(), tmp_path / "x.pt")
    with pytest.raises(GencliError, match="145 tensors") as caught:
        Pt.make().read(tmp_path / "x.pt", None)
    assert "--like" in caught.value.hint


# ------------------------------------------------------------------------------------------------------------- no code


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_file_is_named_and_never_run(legacy, tmp_path):
    target, file = tmp_path / "made-by-the-pickle", tmp_path / "bad.pt"
    torch.save(
        {"state_dict": {"w": torch.zeros(2)}, "extra": Creates(target)}, file, _use_new_zipfile_serialization=not legacy
    )
    with pytest.raises(GencliError, match=r"holds code.*mkdir") as caught:
        load(file)
    assert not target.exists() and "\n" not in caught.value.message
    torch.load(file, weights_only=False)
    assert target.exists(), "the control: read carelessly, the file does run"


def test_plain_pickles_and_rubbish_are_refused(tmp_path):
    file = tmp_path / "x.pt"
    for data in (pickle.dumps(Creates(tmp_path / "no")), b"rubbish", b"", b"PK\x03\x04rubbish"):
        file.write_bytes(data)
        with pytest.raises(GencliError) as caught:
            load(file)
        assert str(file) in caught.value.message and "\n" not in caught.value.message
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("held", [[torch.zeros(1)], {"a": 1}, {"state_dict": {}}, torch.zeros(2), {"model": {"a": 3}}])
def test_a_file_without_named_tensors_is_refused(held, plain, tmp_path):
    torch.save(held, tmp_path / "x.pt")
    with pytest.raises(GencliError, match="no tensors by name"):
        Pt.make().read(tmp_path / "x.pt", Run.load(plain))


@pytest.mark.parametrize("place", ["../evil", "/tmp/evil", "codec/../../evil", "other"])
def test_a_file_cannot_choose_where_it_is_written(place, plain, tmp_path):
    packed = Packed.of(plain)
    packed.configs[place] = packed.configs[""]
    torch.save({"format": 1, "config": packed.text, "state_dict": packed.tensors}, tmp_path / "x.pt")
    with pytest.raises(GencliError, match="no folder of a run"):
        Pt.make().bring(tmp_path / "x.pt", None, tmp_path / "runs", None, "typed", True)


def test_a_newer_format_is_refused(plain, tmp_path):
    packed = Packed.of(plain)
    packed.configs[""]["format"] = 99
    torch.save({"format": 99, "config": packed.text, "state_dict": packed.tensors}, tmp_path / "x.pt")
    with pytest.raises(GencliError, match="format 99"):
        Pt.make().read(tmp_path / "x.pt", None)


@pytest.mark.parametrize("kind", CONVERTERS)
def test_a_file_that_differs_is_not_kept(kind, plain, tmp_path, monkeypatch):
    write = CONVERTERS[kind].write

    def careless(self, run, path):
        notes = write(self, run, path)
        data = bytearray(path.read_bytes())
        position = bytes(data).index(run.model.net.conv_in.weight.numpy().tobytes())
        data[position + 2] ^= 1
        path.write_bytes(bytes(data))
        return notes

    monkeypatch.setattr(CONVERTERS[kind], "write", careless)
    with pytest.raises(GencliError, match=r"tensors differ by|damaged") as caught:
        CONVERTERS[kind].make().export(Run.load(plain), tmp_path / "x", True)
    assert not list(tmp_path.glob("*")) and caught.value.code in (1, 2)
