"""Checkpoints of the authors' programs: every key used, every number at its place, the same outputs, and back bit for bit."""

from __future__ import annotations

import argparse
import importlib
import math
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import originals
import pytest
import torch
from released import CLASSES, TWINS, built, converter, file_of, manifest, numbers, skeleton
from saved import filled

from gencli import recipe as recipes
from gencli.bundle import Run
from gencli.config import merge
from gencli.converters._official import images
from gencli.core import Rng
from gencli.metrics._torchvision import import_torchvision
from gencli.nn.embed import sincos_grid
from gencli.training.session import resolve

BY_VALUE = 60_000_000  # numbers of a file that is compared by value; larger ones by names and shapes


RELEASED = {
    "guided-diffusion": (
        "adm_imagenet64_cond",
        "adm_imagenet128_cond",
        "adm_imagenet256_cond",
        "adm_imagenet256_uncond",
        "adm_imagenet512_cond",
        "adm_classifier_64",
        "adm_classifier_128",
        "adm_classifier_256",
        "adm_classifier_512",
    ),
    "improved-diffusion": ("iddpm_cifar10_uncond_50M", "iddpm_imagenet64_uncond_100M", "iddpm_lsun_bedroom"),
    "openai-ddpm": ("ddim_cifar10", "ddim_celeba", "ddim_bedroom"),
    "edm": (
        "edm_cifar10_cond_vp_ddpmpp",
        "edm_cifar10_uncond_ve_ncsnpp",
        "edm_ffhq64_uncond_vp_ddpmpp",
        "edm_ffhq64_uncond_ve_ncsnpp",
        "edm_imagenet64_cond_adm",
    ),
    "edm2": ("edm2_img64_xxs", "edm2_img64_s", "edm2_img64_xl"),
    "ldm": ("ldm_first_stage_kl-f4", "ldm_first_stage_kl-f8", "ldm_first_stage_kl-f32", "ldm_first_stage_vq-f8"),
    "taming-vqgan": ("vqgan_imagenet_vqgan", "vqgan_imagenet_f16_16384"),
    "u-vit": ("uvit_cifar10_uvit_small", "uvit_imagenet64_uvit_large"),
    "score-sde": (
        "score_sde_vp_cifar10_ddpmpp_continuous",
        "score_sde_ve_cifar10_ncsnpp_continuous",
        "score_sde_ve_celebahq_256_ncsnpp_continuous",
    ),
    "ncsnv2": ("ncsnv2_cifar10", "ncsnv2_bedroom", "ncsnv2_ffhq"),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in RELEASED.items() for name in names])
def test_every_tensor_of_a_released_file_is_used_and_goes_back_to_its_place(kind, name):
    shapes = manifest(name)
    real = sum(map(math.prod, shapes.values())) <= BY_VALUE
    given, one = numbers(shapes, real), converter(kind)
    run = skeleton(one, given)
    fixed = {key: value for key, value in one.fixed(run.model).items() if value.device.type != "meta"}
    given |= fixed
    assert fixed.keys() <= shapes.keys()
    one.fixed = lambda model: fixed
    run.model.load_state_dict(one.brought(run.model, given, Path(name)), strict=False, assign=True)
    back = one.sent(run.model)
    dropped = {key for key in given if one.drops(key)}
    assert back.keys() == given.keys() - dropped and dropped <= {"sigmas"}
    assert all(back[key].shape == value.shape for key, value in given.items() if key in back)
    if real:
        assert all(torch.equal(back[key], value) for key, value in given.items() if key in back)


# ------------------------------------------------------------------------------------------------------ the same outputs


@pytest.mark.parametrize("name", TWINS)
def test_outputs_are_those_of_the_original_network(name, tmp_path):
    twin = TWINS[name]
    one = converter(twin.kind, **twin.settings)
    state = file_of(one, built(twin.model, twin.spec), tmp_path / "theirs.pt")
    done = one.bring(tmp_path / "theirs.pt", None, tmp_path, "ours", "typed", verify=True)
    assert [check.error for check in done.checks] == [0.0]
    run = Run.load(done.path)
    x = torch.randn(2, *twin.shape, generator=torch.Generator().manual_seed(1))
    level, label = torch.tensor(twin.level), torch.tensor([1, 4]) if twin.spec.cond else None
    with torch.no_grad():
        ours, theirs = one.output(run.model, _told(x, level, label)), twin.original(state, x, level, label)
    size = float(theirs.abs().max())
    assert size > 1e-4
    assert float((ours - theirs).abs().max()) / size < 1e-4
    _everything_matters(one, run, _told(x, level, label), ours)


def test_another_order_of_rows_is_another_network():
    twin = TWINS["guided-diffusion"]
    one, run = converter(twin.kind, **twin.settings), built(twin.model, twin.spec)
    state = {key: value.detach() for key, value in one.sent(run.model.eval()).items()}
    x, level, label = torch.randn(2, *twin.shape), torch.tensor(twin.level), torch.tensor([1, 4])
    with torch.no_grad():
        ours = one.output(run.model, _told(x, level, label))
        wrong = originals.openai(state, x, level, label, lambda c: c // 64, False, {3})
    assert (ours - wrong).abs().max() > 0.01 * ours.abs().max()


def _told(x: torch.Tensor, level: torch.Tensor, label: torch.Tensor | None) -> dict[str, torch.Tensor]:
    return {"x": x, "level": level, **({} if label is None else {"label": label})}


def _everything_matters(one: Any, run: Run, told: dict[str, torch.Tensor], before: torch.Tensor) -> None:
    """Each of 20 tensors of the file, changed, changes the output."""
    given = one.sent(run.model)
    silent = {n for n in given if n.startswith("logvar") or "map_augment" in n}  # of training alone
    silent |= {n for n in given if n.endswith((".k.bias", "NIN_1.b"))}  # a bias of keys moves all scores of a row alike
    names = sorted(given.keys() - silent - one.fixed(run.model).keys())
    generator = torch.Generator().manual_seed(2)
    for i in torch.randperm(len(names), generator=generator)[:20].tolist():
        noise = torch.randn(given[names[i]].shape, generator=generator)
        changed = {**given, names[i]: given[names[i]] + noise}
        run.model.load_state_dict(one.brought(run.model, changed, Path("x")), strict=False)
        with torch.no_grad():
            assert not torch.equal(one.output(run.model, told), before), names[i]
    run.model.load_state_dict(one.brought(run.model, given, Path("x")), strict=False)


# ---------------------------------------------------------------------------------------------- what diffusers has as well


def diffusers() -> Any:
    """The library, which is not needed elsewhere."""
    pytest.importorskip("diffusers")
    import_torchvision()  # which diffusers imports too
    import diffusers

    return diffusers


def renamed(state: dict[str, torch.Tensor], rules: tuple[tuple[str, Any], ...], like: Any) -> dict[str, torch.Tensor]:
    """Tensors by the names and in the shapes of a module."""
    made = {}
    for name, value in state.items():
        for pattern, text in rules:
            name = re.sub(pattern, text, name)
        made[name] = value
    return {name: value.reshape(like.state_dict()[name].shape) for name, value in made.items()}


DDIM = (
    (r"^temb\.dense\.(\d)", lambda m: f"time_embedding.linear_{int(m[1]) + 1}"),
    (r"^mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}"),
    (r"^mid\.attn_1", "mid_block.attentions.0"),
    (r"^down\.", "down_blocks."),
    (r"^up\.(\d)", lambda m: f"up_blocks.{1 - int(m[1])}"),
    (r"\.block\.", ".resnets."),
    (r"\.attn\.", ".attentions."),
    (r"attentions\.(\d)\.norm", r"attentions.\1.group_norm"),
    (r"\.(q|k|v)\.", r".to_\1."),
    (r"\.proj_out\.", ".to_out.0."),
    (r"\.(down|up)sample\.conv", r".\1samplers.0.conv"),
    (r"temb_proj", "time_emb_proj"),
    (r"nin_shortcut", "conv_shortcut"),
    (r"^norm_out", "conv_norm_out"),
)


def test_ddpm_is_that_of_diffusers(tmp_path):
    net = {"name": "unet", "width": 32, "mults": [1, 2], "blocks": 1, "attention": [16], "groups": 32}
    one = converter("openai-ddpm")
    state = file_of(one, built({"name": "ddpm", "net": net}, images(32)), tmp_path / "theirs.ckpt")
    theirs = (
        diffusers()
        .UNet2DModel(
            sample_size=32,
            layers_per_block=1,
            block_out_channels=(32, 64),
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
            norm_eps=1e-6,
            downsample_padding=0,
            flip_sin_to_cos=False,
            freq_shift=1,
            attention_head_dim=None,
        )
        .eval()
    )
    theirs.load_state_dict(renamed(state, DDIM, theirs))
    torch.save([{}, {}, 3, 400, {f"module.{key}": value for key, value in state.items()}], tmp_path / "train.ckpt")
    x, level = torch.randn(2, 3, 32, 32), torch.tensor([3, 700])
    for file in ("theirs.ckpt", "train.ckpt"):
        run = Run.load(one.bring(tmp_path / file, None, tmp_path, "ours", "typed", verify=True).path)
        with torch.no_grad():
            ours, other = run.model.net(x, level), theirs(x, level).sample
        assert (ours - other).abs().max() < 1e-4 * other.abs().max()
    _everything_matters(one, run, {"x": x, "level": level}, ours)


def first_stage(kind: str, tmp_path: Path, **over: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A small autoencoder's file, halved once, with attention at both levels."""
    net = {"width": 128, "mults": [1, 1], "blocks": 1, "attention": [16]}
    model = {"encoder": {"name": "vqgan-encoder", **net}, "decoder": {"name": "vqgan-decoder", **net}, **over}
    critic = {"name": "patch-discriminator", "width": 8, "layers": 1}
    run = built({"name": kind, "discriminator": critic, "perceptual": "gencli", **model}, images(32))
    one = converter("ldm", image_size=32)
    return one, file_of(one, run, tmp_path / "first.ckpt")


def _lightning(monkeypatch: pytest.MonkeyPatch) -> type:
    """A class that Lightning's files name."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for end in (17, 27, len(name)):  # the packages that it is in
        monkeypatch.setitem(sys.modules, name[:end], types.ModuleType(name[:end]))
    kind = type("ModelCheckpoint", (), {"__module__": name})
    monkeypatch.setattr(sys.modules[name], "ModelCheckpoint", kind, raising=False)
    return kind


@pytest.mark.parametrize("kind", ["kl-autoencoder", "vqgan"])
def test_first_stages_are_those_of_diffusers(kind, tmp_path, monkeypatch):
    library = diffusers()
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    z = {"dim": 4} if kind == "kl-autoencoder" else {"dim": 4, "codes": 16, "distance": "l1"}
    encoder, decoder = {"z": 8 if kind == "kl-autoencoder" else 4}, {"z": 4}
    net = {"width": 128, "mults": [1, 1], "blocks": 1, "attention": []}
    parts = {
        "encoder": {"name": "vqgan-encoder", **net, **encoder},
        "decoder": {"name": "vqgan-decoder", **net, **decoder},
    }
    one, state = first_stage(kind, tmp_path, **z, **parts)
    shared = {
        "block_out_channels": (128, 128),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "layers_per_block": 1,
        "latent_channels": 4,
        "sample_size": 32,
    }
    theirs = (
        library.AutoencoderKL(**shared) if kind == "kl-autoencoder" else library.VQModel(num_vq_embeddings=16, **shared)
    )
    copied = convert_ldm_vae_checkpoint(dict(state), dict(theirs.config))
    if kind == "vqgan":
        copied["quantize.embedding.weight"] = state["quantize.embedding.weight"]
    theirs.eval().load_state_dict(copied)
    whole = {f"first_stage_model.{key}": value for key, value in state.items()}
    whole |= {"model.diffusion_model.out.2.bias": torch.ones(3), "betas": torch.ones(9), "loss.logvar": torch.zeros(())}
    with monkeypatch.context() as installed:
        torch.save({"callbacks": {_lightning(installed): 3}, "state_dict": whole}, tmp_path / "model.ckpt")
    done = one.bring(tmp_path / "model.ckpt", None, tmp_path, "ours", "typed", verify=True)
    assert any("left out" in note and "betas and 2 more" in note for note in done.notes)
    run, x = Run.load(done.path), torch.rand(2, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        made = theirs.encode(x)
        other = theirs.decode(made.latent_dist.mean if kind == "kl-autoencoder" else made.latents).sample
        ours = run.model.reconstruct(x)
    assert (ours - other).abs().max() < 1e-4 * other.abs().max()


def test_a_transformer_over_latents_is_that_of_diffusers_and_draws_pictures(tmp_path, monkeypatch):
    library = diffusers()
    from diffusers.models.embeddings import Timesteps

    first_stage("kl-autoencoder", tmp_path, dim=4)
    stage = converter("ldm", image_size=32).bring(
        tmp_path / "first.ckpt", None, tmp_path / "checkpoints", "vae", "", True
    )
    codec = Run.load(stage.path)
    net = {"name": "dit", "patch": 2, "width": 128, "depth": 2, "heads": 2}
    latent = {
        "model": {"name": "iddpm", "timesteps": 1000, "schedule": "linear", "net": net},
        "codecs": [{"name": "learned"}],
    }
    run = Run.build(resolve({**latent, "data": {"name": "folder"}}), images(32, classes=CLASSES), codec)
    filled(run.model, std=0.05)
    monkeypatch.chdir(tmp_path)
    one = converter("dit", codec="vae")
    given = file_of(one, run, tmp_path / "dit.pt")
    torch.save({"ema": given, "model": {}, "args": argparse.Namespace(epochs=3)}, tmp_path / "train.pt")
    done = one.bring(tmp_path / "train.pt", None, tmp_path / "checkpoints", "ours", "typed", verify=True)
    ours = Run.load(done.path)
    theirs = library.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=16,
        patch_size=2,
        num_embeds_ada_norm=CLASSES,
        norm_num_groups=1,
        norm_eps=1e-6,
    ).eval()
    missing, surplus = theirs.load_state_dict(_dit(given), strict=False)
    assert not surplus and missing in ([], ["pos_embed.pos_embed"])
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    x, level, label = torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.tensor([1, CLASSES])
    with torch.no_grad():
        a, b = ours.model.net(x, level, label=label), theirs(x, level, class_labels=label).sample
    assert (a - b).abs().max() < 1e-4 * b.abs().max()
    _everything_matters(one, ours, _told(x, level, label), a)
    inner = ours.codecs[0].model
    assert inner.spread.deviation == pytest.approx(1 / 0.18215) and codec.model.spread.deviation == 1
    sampler = ours.sampler("ancestral", {"steps": 2})
    drawn = ours.sample(Rng.rows(range(2)), {"label": torch.tensor([0, 1])}, sampler)
    assert drawn["x"].shape == (2, 3, 32, 32) and drawn["x"].dtype == torch.uint8


def _dit(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """DiT's file by the names of diffusers, which embeds the level in every block."""
    made = {}
    for kind in ("weight", "bias"):
        made[f"pos_embed.proj.{kind}"] = given[f"x_embedder.proj.{kind}"]
        made[f"proj_out_1.{kind}"] = given[f"final_layer.adaLN_modulation.1.{kind}"]
        made[f"proj_out_2.{kind}"] = given[f"final_layer.linear.{kind}"]
        for i in range(2):
            here, there = f"blocks.{i}", f"transformer_blocks.{i}"
            for k, letter in enumerate("qkv"):
                made[f"{there}.attn1.to_{letter}.{kind}"] = given[f"{here}.attn.qkv.{kind}"].chunk(3)[k]
            made[f"{there}.attn1.to_out.0.{kind}"] = given[f"{here}.attn.proj.{kind}"]
            made[f"{there}.ff.net.0.proj.{kind}"] = given[f"{here}.mlp.fc1.{kind}"]
            made[f"{there}.ff.net.2.{kind}"] = given[f"{here}.mlp.fc2.{kind}"]
            made[f"{there}.norm1.linear.{kind}"] = given[f"{here}.adaLN_modulation.1.{kind}"]
            for j in (1, 2):
                made[f"{there}.norm1.emb.timestep_embedder.linear_{j}.{kind}"] = given[
                    f"t_embedder.mlp.{2 * j - 2}.{kind}"
                ]
            made[f"{there}.norm1.emb.class_embedder.embedding_table.weight"] = given[
                "y_embedder.embedding_table.weight"
            ]
    return made


@pytest.mark.parametrize(
    ("kind", "name", "side"),
    [
        ("dit", "dit_DiT-S_2_256", 32),
        ("dit", "dit_DiT-XL_2_512", 64),
        ("edm2", "edm2_img512_xxs", 64),
        ("edm2", "edm2_img512_s", 64),
    ],
)
def test_released_models_of_latents_are_used_whole(kind, name, side, monkeypatch):
    shapes = manifest(name)
    positions = shapes.pop("pos_embed", None)
    with torch.device("meta"):
        first = merge(recipes.load("kl-autoencoder-f8"), {"data": {"image_size": 8 * side}})
        codec = Run.build(resolve(first), images(8 * side))
    spec = lambda classes: images(8 * side, classes=classes)  # noqa: E731
    module = importlib.import_module(f"gencli.converters.{kind}")
    monkeypatch.setattr(module, "latents_of", lambda name, shape, classes, scaling, where: (codec, {}, spec(classes)))
    real = sum(map(math.prod, shapes.values())) <= BY_VALUE
    given, one = numbers(shapes, real), converter(kind)
    shown = given if positions is None else {**given, "pos_embed": torch.empty(positions, device="meta")}
    run = skeleton(one, shown)
    run.model.load_state_dict(one.brought(run.model, given, Path(name)), strict=False, assign=True)
    back = one.sent(run.model)
    assert list(back.pop("pos_embed", torch.empty(0)).shape) == (positions or [0])
    assert back.keys() == given.keys() and all(back[key].shape == value.shape for key, value in given.items())
    assert not real or all(torch.equal(back[key], value) for key, value in given.items())


def test_dit_s_positions_are_the_released_ones():
    """As facebookresearch/DiT computes them, the column first."""
    width, side = 1152, 16
    omega = 1 / 10_000 ** (np.arange(width // 4, dtype=np.float64) / (width / 4))
    column, row = np.meshgrid(np.arange(side, dtype=np.float32), np.arange(side, dtype=np.float32))
    parts = [np.einsum("m,d->md", axis.reshape(-1), omega) for axis in (column, row)]
    official = np.concatenate([np.concatenate([np.sin(part), np.cos(part)], 1) for part in parts], 1)
    ours = sincos_grid(width, side, side)
    assert np.abs(ours.numpy() - official.astype(np.float32)).max() < 1e-6
