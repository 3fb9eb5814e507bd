"""Programs of torch.export: the same numbers at any batch, in a process without gencli; what is no function is refused."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved import ddpm, saved
from tiny import smoke, table

from gencli.bundle import Run
from gencli.converters import pt2 as module
from gencli.converters._parts import exportable
from gencli.converters.pt2 import Pt2
from gencli.errors import GencliError

KINDS = {
    "unet": ddpm({"model": {"prediction": "v"}}),
    "vqvae": table("vqvae"),
    "vae": smoke("vae"),
    "wgan-gp": smoke("wgan-gp"),
}
ELSEWHERE = """
import json, sys, torch
from safetensors.torch import load_file, save_file
sys.modules["gencli"] = None
found = {"gencli.json": ""}
program = torch.export.load(sys.argv[1], extra_files=found).module()
given = load_file(sys.argv[2])
assert json.loads(found["gencli.json"])["recipe"]["model"]["name"] == "ddpm"
save_file({"out": program(*(given[key] for key in sorted(given)))}, sys.argv[3])
"""


def exported(tables, folder, **kwargs):
    run = Run.load(saved(folder, tables, **kwargs))
    return run, Pt2.make().export(run, folder / "x.pt2", verify=True)


@pytest.mark.parametrize("kind", KINDS)
def test_the_program_gives_the_same_numbers_at_any_batch(kind, tmp_path):
    run, done = exported(KINDS[kind], tmp_path, std=0.05)
    assert done.checks[0].error < 1e-5 and not done.unverified
    part, program = exportable(run), torch.export.load(str(done.path)).module()
    inputs = part.inputs(7)
    with torch.no_grad():
        ours = part.function(**inputs)
        assert ours.std() > 1e-3 and torch.allclose(program(*inputs.values()), ours, atol=1e-5)
        first = next(iter(inputs))
        changed = {**inputs, first: inputs[first].flip(0)}
        assert not torch.allclose(program(*changed.values()), ours, atol=1e-5)


def test_it_runs_where_gencli_is_not(tmp_path):
    run, done = exported(KINDS["unet"], tmp_path)
    inputs = exportable(run).inputs(3)
    assert list(inputs) == ["x", "sigma", "label"] and done.notes == [
        "the program is a denoiser: x, sigma, label to x0"
    ]
    save_file({str(place): value.contiguous() for place, value in enumerate(inputs.values())}, tmp_path / "in")
    names = [str(done.path), str(tmp_path / "in"), str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", ELSEWHERE, *names], check=True)
    with torch.no_grad():
        assert torch.allclose(load_file(tmp_path / "out")["out"], run.model.denoise(**inputs), atol=1e-5)


def test_a_program_that_differs_does_not_get_its_name(tmp_path, monkeypatch):
    wrong = module.Call.forward
    monkeypatch.setattr(module.Call, "forward", lambda self, *values: wrong(self, *values) + 1e-3)
    with pytest.raises(GencliError, match=r"differ by 0\.001"):
        exported(KINDS["vae"], tmp_path)
    assert not list(tmp_path.glob("*.pt2"))


def test_what_is_no_function_and_what_cannot_be_traced_is_refused(tmp_path, monkeypatch):
    with pytest.raises(GencliError, match="one after the other"):
        exported(smoke("made"), tmp_path / "made")

    def loops(self, *values):
        return values[0] * json.loads(str(float(values[0].sum())))

    monkeypatch.setattr(module.Call, "forward", loops)
    with pytest.raises(GencliError, match=r"a decoder of run .* cannot be exported"):
        exported(KINDS["vae"], tmp_path / "vae")
