"""ONNX graphs, run by onnxruntime: the same numbers at any batch; what is no function is refused."""

import json

import numpy as np
import pytest
import torch
from saved import ddpm, saved
from tiny import smoke, table

from gencli.bundle import Run
from gencli.converters import _base
from gencli.converters import onnx as module
from gencli.converters._parts import exportable
from gencli.converters.onnx import Onnx
from gencli.core import Rng
from gencli.errors import GencliError

HAVE = _base.installed("onnx") and _base.installed("onnxruntime")
needs_onnx = pytest.mark.skipif(not HAVE, reason="onnx and onnxruntime are not installed")
if HAVE:
    import onnx
    import onnxruntime

DIT = {"name": "dit", "width": 16, "depth": 1, "heads": 2}
KINDS = {
    "unet": ddpm({"model": {"prediction": "v"}}),
    "dit": {**ddpm(), "model": {"name": "ddpm", "timesteps": 20, "net": DIT}},
    "vqvae": table("vqvae"),
}


def exported(tables, folder, **kwargs):
    run = Run.load(saved(folder, tables, **kwargs))
    return run, Onnx.make().export(run, folder / "x.onnx", verify=True)


def session(path):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@needs_onnx
@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_gives_the_same_numbers_at_any_batch(kind, tmp_path):
    run, done = exported(KINDS[kind], tmp_path)
    assert done.checks[0].error < 1e-4 and not done.unverified
    part, graph = exportable(run), session(done.path)
    for n in (3, 8):
        inputs = part.inputs(n)
        (theirs,) = graph.run(None, {key: value.numpy() for key, value in inputs.items()})
        with torch.no_grad():
            ours = part.function(**inputs).numpy()
        assert theirs.shape == ours.shape == (n, *run.spec.x.shape) and ours.std() > 0.05
        noise = np.maximum(1, inputs["sigma"].numpy()) if "sigma" in inputs else np.ones(n)
        assert (np.abs(theirs - ours).reshape(n, -1).max(1) / noise).max() < 1e-4


@needs_onnx
@pytest.mark.parametrize("model", ["vae", "realnvp", "wgan-gp"])
def test_decoders_of_every_family_are_exported(model, tmp_path):
    run, done = exported(smoke(model), tmp_path, std=0.05)
    assert done.checks[0].error < 1e-4 and done.notes == ["the graph is a decoder: z to x"]
    z = run.model.prior(3, Rng.rows(range(3)))
    (made,) = session(done.path).run(None, {"z": z.numpy()})
    with torch.no_grad():
        assert np.abs(made - run.model.decode(z).numpy()).max() < 1e-4


@needs_onnx
def test_every_input_of_a_denoiser_matters_and_the_run_is_in_the_file(tmp_path):
    _, done = exported(KINDS["unet"], tmp_path)
    graph = session(done.path)
    assert [(i.name, i.shape) for i in graph.get_inputs()] == [
        ("x", ["batch", 1, 8, 8]), ("sigma", ["batch"]), ("label", ["batch"])
    ]  # fmt: skip
    given = {
        "x": np.ones((2, 1, 8, 8), np.float32),
        "sigma": np.ones(2, np.float32),
        "label": np.array([3, 10]),
    }
    (plain,) = graph.run(None, given)
    assert np.abs(plain[0] - plain[1]).max() > 1e-3, "a class and no class"
    for key, value in {"x": given["x"] * 0.5, "sigma": given["sigma"] * 3, "label": given["label"] - 2}.items():
        assert np.abs(graph.run(None, {**given, key: value})[0] - plain).max() > 1e-3
    held = {p.key: p.value for p in onnx.load(str(done.path)).metadata_props}
    assert json.loads(held["gencli"])["recipe"]["model"]["name"] == "ddpm"


@needs_onnx
def test_a_graph_that_differs_is_found_and_not_kept(tmp_path, monkeypatch):
    run = Run.load(saved(tmp_path / "runs", KINDS["unet"]))
    write = Onnx.write

    def careless(self, run, path):
        with torch.no_grad():
            run.model.net.conv_out.bias.add_(0.5)
        notes = write(self, run, path)
        with torch.no_grad():
            run.model.net.conv_out.bias.sub_(0.5)
        return notes

    monkeypatch.setattr(Onnx, "write", careless)
    with pytest.raises(GencliError, match=r"against onnxruntime .* differ by 0\.\d") as caught:
        Onnx.make().export(run, tmp_path / "x.onnx", verify=True)
    assert caught.value.code == 1 and not (tmp_path / "x.onnx").exists()


@needs_onnx
def test_a_graph_of_one_batch_only_is_found(tmp_path, monkeypatch):
    """The control of the batches: a size that was baked in."""
    run = Run.load(saved(tmp_path / "runs", KINDS["unet"]))
    denoise = type(run.model).denoise
    fixed = lambda self, x, sigma, **cond: denoise(self, x, sigma, **cond) + torch.zeros(len(x), 1, 1, 1)  # noqa: E731
    monkeypatch.setattr(type(run.model), "denoise", fixed)
    with pytest.raises(GencliError, match="at a batch of"):
        Onnx.make().export(run, tmp_path / "x.onnx", verify=True)


@needs_onnx
def test_an_operator_without_a_counterpart_is_named(tmp_path, monkeypatch, capfd):
    run = Run.load(saved(tmp_path / "runs", KINDS["unet"]))
    monkeypatch.setattr(type(run.model), "denoise", lambda self, x, sigma, **cond: torch.special.i1e(x))
    with pytest.raises(GencliError, match=r"cannot be exported.*special_i1e"):
        Onnx.make().export(run, tmp_path / "x.onnx", verify=True)
    assert capfd.readouterr().out == "" and not (tmp_path / "x.onnx").exists()


def test_what_samples_one_after_the_other_is_refused(tmp_path):
    plain = Run.load(saved(tmp_path, table("pixelcnn")))
    with pytest.raises(GencliError, match="pixelcnn, which draws its numbers one after the other") as caught:
        exportable(plain)
    assert "denoisers and decoders" in caught.value.hint
    prior = Run.load(saved(tmp_path, table("gated-pixelcnn"), codec_run=Run.load(saved(tmp_path, table("vqvae")))))
    with pytest.raises(GencliError) as caught:
        exportable(prior)
    assert f"gencli convert {prior.path / 'codec'} --to onnx" in caught.value.hint


def test_missing_libraries_are_one_line(tmp_path, monkeypatch):
    run = Run.load(saved(tmp_path / "runs", KINDS["unet"]))
    monkeypatch.setattr(module, "installed", lambda name: False)
    with pytest.raises(GencliError, match="onnx is not installed") as caught:
        Onnx.make().export(run, tmp_path / "x.onnx", verify=True)
    assert caught.value.hint == "pip install 'gencli[export]'" and not (tmp_path / "x.onnx").exists()


@needs_onnx
def test_without_the_runtime_it_is_written_and_said_not_to_be_verified(tmp_path, monkeypatch):
    run = Run.load(saved(tmp_path / "runs", KINDS["vqvae"]))
    monkeypatch.setattr(_base, "installed", lambda name: name != "onnxruntime")
    done = Onnx.make().export(run, tmp_path / "x.onnx", verify=True)
    assert done.path.is_file() and done.unverified == "onnxruntime is not installed (pip install 'gencli[export]')"


def test_weights_that_no_file_can_hold_are_refused(tmp_path, monkeypatch):
    run = Run.load(saved(tmp_path / "runs", KINDS["unet"]))
    monkeypatch.setattr(module, "LARGEST", 1000)
    monkeypatch.setattr(module, "installed", lambda name: True)
    with pytest.raises(GencliError, match="an ONNX file holds 2"):
        Onnx.make().write(run, tmp_path / "x.onnx")
