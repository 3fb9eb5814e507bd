"""Folders for diffusers: loaded by the library itself, the same network, the same pictures, and back."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from saved import ddpm, saved
from tiny import table

from gencli.bundle import Run, read_tensors
from gencli.converters import _base
from gencli.converters.diffusers import Diffusers, their_name
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.metrics._torchvision import import_torchvision

if _base.installed("diffusers"):
    if _base.installed("torchvision"):
        import_torchvision()  # which diffusers imports too
    import diffusers

needs_peer = pytest.mark.skipif(not _base.installed("diffusers"), reason="diffusers is not installed")


def exported(run, folder):
    return Diffusers.make().export(Run.load(run), folder / "out", verify=False)


def loaded(folder):
    net = diffusers.UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    return net, diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")


def outputs(run, net, spread=1.0):
    """The two networks at the same inputs: x of unit variance, indices and labels over their whole ranges."""
    model = run.model
    x = torch.randn(6, *run.spec.x.shape, generator=torch.Generator().manual_seed(1)) * spread
    index = torch.tensor([0, 1, 3, 9, 15, 19]) * (len(model.levels) // 20)
    cond = {"label": torch.tensor([0, 3, 9, 10, 5, 10])} if run.spec.cond else {}
    with torch.no_grad():
        return model.net(x, index.float(), **cond), net(x, index, class_labels=cond.get("label")).sample


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A run with classes and attention."""
    return saved(tmp_path_factory.mktemp("classes"), ddpm({"model": {"timesteps": 40}}))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A run without classes."""
    return saved(tmp_path_factory.mktemp("bare"), ddpm({"data": {"unconditional": True}}))


# ----------------------------------------------------------------------------------------------------------------- networks


@needs_peer
@pytest.mark.parametrize(("std", "gain"), [(0.05**0.5, 0.0), (0.05, 1.0)], ids=["variance 0.05", "deviation 0.05"])
def test_the_papers_width_with_every_tensor_random(std, gain, tmp_path):
    """All tensors from N(0, 0.05), gains of norms too (about 1 where 0.05 is the deviation): nothing hides behind a zero."""
    wide = {"width": 128, "mults": [1, 2], "blocks": 1, "attention": [4], "groups": 0}
    run = Run.load(saved(tmp_path, ddpm({"model": {"timesteps": 1000}}, **wide), std=std, gain=gain))
    done = Diffusers.make().export(run, tmp_path / "out", verify=True)
    assert done.checks[0].error < 1e-5 and not done.unverified
    ours, theirs = outputs(run, loaded(done.path)[0])
    bar = 1e-5 * max(1.0, float(theirs.abs().max()))
    assert (ours - theirs).abs().max() < bar and theirs.std() > 0.1
    back = Run.load(Diffusers.make().bring(done.path, None, tmp_path / "runs", None, "typed", True).path)
    assert all(torch.equal(a, b) for a, b in zip(run.model.parameters(), back.model.parameters(), strict=True))
    again, _ = outputs(back, loaded(done.path)[0])
    assert (again - theirs).abs().max() < bar


@needs_peer
@pytest.mark.parametrize(
    "net",
    [
        {},
        {"mults": [1, 2, 1], "blocks": 2, "attention": [8, 2]},
        {"attention": [], "groups": 8},
        {"width": 12, "groups": 3, "dropout": 0.3},
    ],
    ids=["tiny", "three levels", "no attention", "dropout"],
)
def test_outputs_are_those_of_diffusers(net, tmp_path):
    run = saved(tmp_path, ddpm(**net))
    ours, theirs = outputs(Run.load(run), loaded(exported(run, tmp_path).path)[0])
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max() and theirs.std() > 0.1


@needs_peer
@pytest.mark.parametrize(
    "key", ["freq_shift", "flip_sin_to_cos", "norm_eps", "downsample_padding", "attention_head_dim"]
)
def test_each_option_matters(key, classes, tmp_path):
    """The control: with diffusers' own default for any one of them the outputs are others."""
    path = exported(classes, tmp_path).path
    file = path / "unet" / "config.json"
    values = json.loads(file.read_text())
    del values[key]
    if key == "norm_eps":
        values[key] = 1e-2  # the default is too close to be seen in single precision
    file.write_text(json.dumps(values))
    ours, theirs = outputs(Run.load(classes), loaded(path)[0])
    assert (ours - theirs).abs().max() > 1e-3


@needs_peer
def test_a_conversion_that_is_wrong_is_found_and_not_kept(classes, tmp_path, monkeypatch):
    from gencli.converters import diffusers as module

    swapped = {"attentions.0.to_q": "attentions.0.to_k", "attentions.0.to_k": "attentions.0.to_q"}

    def wrong(name):
        right = their_name(name)
        return next((right.replace(a, b) for a, b in swapped.items() if a in right), right)

    monkeypatch.setattr(module, "their_name", wrong)
    with pytest.raises(GencliError, match="network outputs against diffusers differ by") as caught:
        Diffusers.make().export(Run.load(classes), tmp_path / "out", verify=True)
    assert caught.value.code == 1 and not list(tmp_path.glob("*")) and not list(tmp_path.glob(".*"))


# ------------------------------------------------------------------------------------------------------------------- chains


CHAINS = {
    "the paper's": {},
    "cosine v": {"schedule": "cosine", "prediction": "v"},
    "sigmoid x0": {"schedule": "sigmoid", "prediction": "x0"},
    "shifted": {"shift": True, "prediction": "v", "variance": "large"},
    "no signal at the end": {"zero_terminal": True, "prediction": "v", "schedule": "cosine"},
}


def ours_by_ddim(run, steps, **settings):
    sampler = run.sampler("ddim", {"steps": steps, **settings})
    with torch.no_grad():
        *_, last = sampler.frames(run.model, run.spec, 3, Rng.rows(range(3)), {})
    return last.x


def theirs_by_ddim(run, path, steps):
    net, scheduler = loaded(path)
    scheduler.set_timesteps(steps)
    x = Rng.rows(range(3)).at("start").normal((3, *run.spec.x.shape))
    with torch.no_grad():
        for t in scheduler.timesteps:
            made = scheduler.step(net(x, t).sample, t, x, use_clipped_model_output=True)
            x = made.prev_sample
    return x


@needs_peer
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_fifty_steps_of_ddim_draw_the_same(chain, spacing, tmp_path):
    over = {"model": {"timesteps": 1000, **CHAINS[chain]}, "data": {"unconditional": True}}
    over["sample"] = {"name": "ddim", "steps": 50, "spacing": spacing}
    folder = saved(tmp_path, ddpm(over, attention=[]), std=0.1)
    run = Run.load(folder)
    done = Diffusers.make().export(run, tmp_path / "out", verify=True)
    ours, theirs = ours_by_ddim(run, 50), theirs_by_ddim(run, done.path, 50)
    assert (ours - theirs).abs().max() < 1e-4
    assert ours.std() > 0.05 and (ours_by_ddim(run, 40) - theirs).abs().max() > 1e-3, "the control"


@needs_peer
@pytest.mark.parametrize("chain", CHAINS)
def test_the_chain_comes_back(chain, tmp_path):
    folder = saved(tmp_path, ddpm({"model": {"timesteps": 200, **CHAINS[chain]}}))
    path = exported(folder, tmp_path).path
    (path / "gencli.json").unlink()
    done = Diffusers.make().bring(path, Run.load(folder), tmp_path / "runs", None, "typed", True)
    before, after = (json.loads((p / "config.json").read_text())["recipe"] for p in (folder, done.path))
    assert after["model"] == before["model"] and after["data"] == before["data"]


@needs_peer
def test_pipelines_draw_what_gencli_draws(bare, tmp_path):
    path = exported(bare, tmp_path).path
    for kind in (diffusers.DDIMPipeline, diffusers.DDPMPipeline, diffusers.DiffusionPipeline):
        pipe = kind.from_pretrained(path)
        pipe.set_progress_bar_config(disable=True)
        assert pipe(batch_size=2, num_inference_steps=4, output_type="np").images.shape == (2, 8, 8, 1)
    run = Run.load(bare)
    pipe = diffusers.DDIMPipeline.from_pretrained(path)
    pipe.set_progress_bar_config(disable=True)
    made = pipe(
        batch_size=1,
        generator=torch.Generator().manual_seed(5),
        num_inference_steps=10,
        use_clipped_model_output=True,
        output_type="np",
    ).images
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    sampler, sigma = run.sampler("ddim", {"steps": 10}), run.model.levels
    x = run.model.start(noise.double(), sigma[0])
    with torch.no_grad():
        *_, last = sampler.run(
            lambda x, s: run.model.denoise(x, s).clamp(-1, 1), x, sampler.levels(run.model), Rng.rows([0])
        )
    assert (torch.from_numpy(made)[..., 0] - (last.x[:, 0] / 2 + 0.5).clamp(0, 1)).abs().max() < 1e-4


@needs_peer
def test_a_run_of_the_papers_sampler_gets_the_papers_scheduler(tmp_path):
    sample = {"name": "ancestral", "steps": 0, "variance": "large"}
    path = exported(saved(tmp_path, ddpm({"sample": sample, "data": {"unconditional": True}})), tmp_path).path
    scheduler = diffusers.DDPMScheduler.from_pretrained(path, subfolder="scheduler")
    assert scheduler.config.variance_type == "fixed_large"
    assert type(diffusers.DiffusionPipeline.from_pretrained(path)).__name__ == "DDPMPipeline"
    done = Diffusers.make().bring(path, None, tmp_path / "runs", None, "typed", True)
    assert Run.load(done.path).config["recipe"]["sample"] == {**sample, "spacing": "trailing", "clip": True}


# ------------------------------------------------------------------------------------------------------------------ foreign


OPTIONS = {
    "freq_shift": 1, "flip_sin_to_cos": False, "norm_eps": 1e-6, "downsample_padding": 0, "attention_head_dim": None,
    "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "in_channels": 3, "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "sample_size": 8,
}  # fmt: skip


def native(folder, classes=None, flat=False, **scheduler):
    """A folder that diffusers itself wrote."""
    torch.manual_seed(0)
    net = diffusers.UNet2DModel(**OPTIONS, num_class_embeds=classes).eval()
    with torch.no_grad():
        for weight in net.parameters():
            weight.add_(torch.randn(weight.shape) * 0.2)
    chain = diffusers.DDPMScheduler(**{"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2, **scheduler})
    net.save_pretrained(folder if flat else folder / "unet")
    chain.save_pretrained(folder if flat else folder / "scheduler")
    return net, chain


@needs_peer
@pytest.mark.parametrize("flat", [False, True])
def test_a_network_that_diffusers_made_is_read(flat, tmp_path):
    net, _ = native(tmp_path / "in", flat=flat)
    done = Diffusers.make().bring(tmp_path / "in", None, tmp_path / "runs", "got", "typed", True)
    run = Run.load(done.path)
    ours, theirs = outputs(run, net)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max() and theirs.std() > 0.1
    assert run.sample(Rng.rows([0]))["x"].dtype == torch.uint8 and "which data" in done.notes[0]
    assert run.spec.x.shape == (3, 8, 8) and run.config["recipe"]["sample"]["name"] == "ancestral"


@needs_peer
def test_classes_without_a_null_get_one(tmp_path):
    net, _ = native(tmp_path / "in", classes=5)
    done = Diffusers.make().bring(tmp_path / "in", None, tmp_path / "runs", None, "typed", True)
    run = Run.load(done.path)
    assert run.spec.cond["label"].vocab == 5 and "no class" in done.notes[1]
    x, index, label = torch.randn(5, 3, 8, 8), torch.arange(5) * 20, torch.arange(5)
    with torch.no_grad():
        ours, theirs = run.model.net(x, index.float(), label=label), net(x, index, class_labels=label).sample
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@needs_peer
def test_tensors_under_their_old_names_are_read(classes, tmp_path):
    path = exported(classes, tmp_path).path
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    old = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = read_tensors(file)[0]
    for new, name in old.items():
        state = {key.replace(new, name): value for key, value in state.items()}
    save_file(state, file)
    done = Diffusers.make().bring(path, None, tmp_path / "runs", None, "typed", False)
    assert all(
        torch.equal(a, b)
        for a, b in zip(Run.load(classes).model.parameters(), Run.load(done.path).model.parameters(), strict=True)
    )


# ----------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("unet", {"norm_eps": 1e-5}, "norm_eps 1e-05"),
        ("unet", {"attention_head_dim": 8}, "attention_head_dim 8"),
        ("unet", {"time_embedding_type": "fourier"}, "time_embedding_type fourier"),
        ("unet", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "up_block_types"),
        ("unet", {"block_out_channels": [8, 12]}, r"block_out_channels \[8, 12\]"),
        ("unet", {"sample_size": 16}, "images of"),
        ("scheduler", {"beta_schedule": "scaled_linear"}, "beta_schedule scaled_linear"),
        ("scheduler", {"beta_end": 0.4}, "beta_schedule linear"),
        ("scheduler", {"prediction_type": "flow"}, "prediction_type flow"),
        ("scheduler", {"variance_type": "learned"}, "variance_type learned"),
        ("scheduler", {"timestep_spacing": "linspace"}, "timestep_spacing linspace"),
        ("scheduler", {"steps_offset": 1}, "steps_offset 1"),
        ("scheduler", {"thresholding": True}, "thresholding True"),
        ("scheduler", {"_class_name": "PNDMScheduler"}, "PNDMScheduler"),
    ],
)  # fmt: skip
def test_an_option_without_a_counterpart_is_named(file, change, words, classes, tmp_path):
    path = exported(classes, tmp_path).path
    at = path / file / ("config.json" if file == "unet" else "scheduler_config.json")
    at.write_text(json.dumps({**json.loads(at.read_text()), **change}))
    with pytest.raises(GencliError, match=words):
        Diffusers.make().bring(path, None, tmp_path / "runs", None, "typed", True)
    assert not list(tmp_path.glob("runs/*"))


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        (table("vqvae"), "is a vqvae"),
        (table("pixelcnn"), "is a pixelcnn"),
        (ddpm(groups=0), r"net.groups 0, norms of \[2, 4, 8\] groups"),
        (ddpm(mults=[2, 2]), "net.mults 2,2"),
        (ddpm({"sample": {"name": "ddim", "spacing": "quad"}}), "spacing quad"),
        (ddpm({"codecs": [{"name": "pixels", "range": "0,1"}]}), r"pixels in \[-1, 1\]"),
        (
            {**ddpm(), "model": {"name": "ddpm", "net": {"name": "dit", "width": 16, "depth": 1, "heads": 1}}},
            "network dit",
        ),
    ],
    ids=["vqvae", "pixelcnn", "groups", "first level", "spacing", "codec", "network"],
)
def test_what_diffusers_has_no_like_of_is_refused_with_the_reason(tables, words, tmp_path):
    run = saved(tmp_path / "runs", tables)
    with pytest.raises(GencliError, match=words) as caught:
        exported(run, tmp_path)
    assert caught.value.hint and not (tmp_path / "out").exists()


def test_a_damaged_folder_is_named(classes, tmp_path):
    path = exported(classes, tmp_path).path
    file = path / "unet" / "diffusion_pytorch_model.safetensors"
    state = read_tensors(file)[0]
    save_file({key: value for key, value in state.items() if key != "conv_in.bias"} | {"odd": torch.zeros(1)}, file)
    for spoil, words in (
        (lambda: None, "missing conv_in.bias, unexpected odd"),
        (lambda: (path / "scheduler" / "scheduler_config.json").write_text("{"), "damaged"),
        (lambda: shutil.rmtree(path / "scheduler"), "scheduler_config.json is missing"),
    ):
        spoil()
        with pytest.raises(GencliError, match=words):
            Diffusers.make().read(path, None)


def test_without_the_library_it_is_written_and_said_not_to_be_verified(classes, tmp_path, monkeypatch):
    monkeypatch.setattr(_base, "installed", lambda module: module != "diffusers")
    done = Diffusers.make().export(Run.load(classes), tmp_path / "out", verify=True)
    assert not done.checks and done.unverified == "diffusers is not installed (pip install 'gencli[peers]')"
    assert (done.path / "unet" / "config.json").is_file()
