"""A LoRA alone in a file: small, named as peft names it, bit-equal on its base, and refused by every other."""

import json

import pytest
import torch
from safetensors.torch import save_file
from shell import copied, empty
from tiny import session, shaken, smoke, trained

from gencli.bundle import Run, read_tensors
from gencli.config import merge
from gencli.converters.lora import Lora
from gencli.converters.safetensors import Safetensors
from gencli.core import Rng
from gencli.errors import GencliError


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A base, and a LoRA beside it of scale 2."""
    root = tmp_path_factory.mktemp("lora") / "checkpoints"
    base = trained(root, smoke("ddpm"), name="base")
    tables = merge(smoke("ddpm"), {"train": {"steps": 3, "lr": 0.01, "warmup": 0}})
    tables["adapters"] = [{"name": "lora", "rank": 2, "scale": 2.0, "layers": "conv|emb|time"}]
    return base, trained(root, tables, begun=base, name="thin")


@pytest.fixture(scope="module")
def file(runs, tmp_path_factory):
    return Lora.make().export(Run.load(runs[1]), tmp_path_factory.mktemp("file") / "thin.safetensors", True).path


def drawn(run):
    return run.sample(Rng.rows(range(2)), {"label": torch.arange(2)}, run.sampler("ddim", {"steps": 2}))["x"]


def test_there_and_back_onto_its_base_is_bit_equal_and_draws_the_same(runs, file, tmp_path):
    back = Lora.make().bring(file, Run.load(runs[0]), tmp_path, None, "typed", True)
    ours, theirs = (read_tensors(path / "model.safetensors")[0] for path in (runs[1], back.path))
    assert back.path.name == "base-lora" and [check.error for check in back.checks] == [0.0] and not back.notes
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    thin, brought = Run.load(runs[1]), Run.load(back.path)
    assert brought.config["parameters"] == thin.config["parameters"] and brought.config["adapters"] == ["lora"]
    assert {**brought.config["from"], "counts": 1} == thin.config["from"]
    assert Lora.make().export(brought, tmp_path / "again.safetensors", True).path.read_bytes() == file.read_bytes()
    assert torch.equal(drawn(brought), drawn(thin)) and not torch.equal(drawn(brought), drawn(Run.load(runs[0])))


def test_by_the_command_line_it_is_not_folded_and_comes_back_onto_its_base(runs, file, tmp_path, capsys):
    copied(runs[0].parents[1], tmp_path)
    with empty(tmp_path, capsys) as shell:
        done = shell.fine("convert", "thin", "--to", "lora")
        assert done.out == "converted/thin-lora.safetensors\n" and "bit-equal" in done.err
        assert done.err.endswith("next: gencli convert converted/thin-lora.safetensors --from lora --like BASE\n")
        assert (tmp_path / "converted/thin-lora.safetensors").read_bytes() == file.read_bytes()
        back = shell.fine("convert", "converted/thin-lora.safetensors", "--from", "lora", "--like", "base")
        assert back.out == "checkpoints/base-lora\n"


def test_by_the_names_and_the_header_alone_the_weights_are_those_of_the_folded_run(runs, file):
    tensors, header = read_tensors(file)
    metadata = json.loads(header["lora_adapter_metadata"])
    assert metadata["r"] == 2 and metadata["lora_alpha"] == 4.0 and metadata["base_name"] == "base"
    base, thin = Run.load(runs[0]).model, Run.load(runs[1])
    own = base.state_dict()
    for key in [key for key in tensors if ".lora_A." in key]:
        layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        a, b = tensors[key], tensors[key.replace("lora_A", "lora_B")]
        moved = torch.einsum("or...,ri...->oi...", b.expand(-1, -1, *a.shape[2:]), a)  # as peft merges, at each place
        own[f"{layer}.weight"] += metadata["lora_alpha"] / metadata["r"] * moved
    from gencli.adapters._base import folded

    whole = folded(thin).model.state_dict()
    assert own.keys() == whole.keys() and all(torch.allclose(own[key], whole[key], atol=1e-6) for key in own)
    assert any(value.dim() == 4 for value in tensors.values()) and any(value.dim() == 2 for value in tensors.values())


def test_the_file_holds_nothing_but_a_and_b(runs, file):
    state = Run.load(runs[1]).model.state_dict()
    learned = sum(value.numel() for key, value in state.items() if key.endswith((".lora_a", ".lora_b")))
    tensors, _ = read_tensors(file)
    assert sum(value.numel() for value in tensors.values()) == learned
    assert file.stat().st_size < (runs[1] / "model.safetensors").stat().st_size / 2


def test_another_base_is_one_line(runs, file, tmp_path):
    other = Run.load(runs[0])
    shaken(other.model)
    with pytest.raises(GencliError, match=r"was trained on weights [0-9a-f]{16} \(run base\), those of base are"):
        Lora.make().read(file, other)
    vae = Run.load(trained(tmp_path, smoke("vae"), name="vae"))
    with pytest.raises(
        GencliError, match=r"is a LoRA for another architecture than that of vae: .* fit no layer, first"
    ):
        Lora.make().read(file, vae)
    with pytest.raises(GencliError, match="without the weights that it was trained on") as found:
        Lora.make().read(file, None)
    assert "--like base" in found.value.hint
    unsaved = Run.load(runs[0])
    unsaved.path = None
    with pytest.raises(GencliError, match="is a recipe, whose weights are not trained"):
        Lora.make().read(file, unsaved)
    with pytest.raises(GencliError, match="--like thin has an adapter already"):
        Lora.make().read(file, Run.load(runs[1]))
    with pytest.raises(GencliError, match="run base has no LoRA to write"):
        Lora.make().export(Run.load(runs[0]), tmp_path / "none.safetensors", True)


def test_files_that_are_no_lora_are_one_line(runs, file, tmp_path):
    tensors, _ = read_tensors(file)
    first = next(iter(tensors))

    def refused(held, metadata, why):
        save_file(held, tmp_path / "x.safetensors", metadata=metadata)
        with pytest.raises(GencliError, match=why):
            Lora.make().read(tmp_path / "x.safetensors", Run.load(runs[0]))

    refused({key: value for key, value in tensors.items() if key != first}, {}, "does not hold A and B of one rank")
    refused({**tensors, first: torch.zeros(3)}, {}, "holds A or B that is no matrix")
    refused({"net.weight": torch.zeros(2)}, {}, "'net.weight', which is no tensor of a LoRA")
    refused(tensors, {}, "does not say its alpha: its header's lora_alpha is not there")
    refused(tensors, {"lora_adapter_metadata": "{"}, "lora_adapter_metadata is no JSON: ")
    refused(tensors, {"lora_adapter_metadata": "[]"}, "lora_adapter_metadata is no JSON object")
    plain = Safetensors.make().export(Run.load(runs[0]), tmp_path / "plain.safetensors", True).path
    with pytest.raises(GencliError, match="no tensor of a LoRA"):
        Lora.make().read(plain, Run.load(runs[0]))


def test_a_file_of_peft_says_nothing_of_its_base_and_is_taken_with_a_note(runs, file, tmp_path):
    tensors, _ = read_tensors(file)
    save_file(tensors, tmp_path / "peft.safetensors", metadata={"lora_adapter_metadata": '{"lora_alpha": 4}'})
    packed, notes = Lora.make().read(tmp_path / "peft.safetensors", Run.load(runs[0]))
    assert "does not say on which weights it was trained" in notes[0]
    theirs = read_tensors(runs[1] / "model.safetensors")[0]
    assert all(torch.equal(packed.tensors[key], theirs[key]) for key in theirs)


def test_statistics_that_moved_are_not_left_behind(tmp_path):
    base = trained(tmp_path, smoke("dcgan"), name="base")
    tables = {**smoke("dcgan"), "adapters": [{"name": "lora", "layers": "generator"}]}
    made = session(tmp_path, tables, begun=base, name="thin")
    for _ in made.events():
        pass
    with pytest.raises(GencliError, match="run thin has batch norms"):
        Lora.make().export(Run.load(made.folder), tmp_path / "x.safetensors", True)
