"""Image GPT as the library transformers has it, its colours, and the scales that models of latents expect."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from released import built, converter, file_of
from saved import filled

from gencli.bundle import Run
from gencli.converters._latents import Scaling, latents_of
from gencli.converters._official import images
from gencli.core import Rng
from gencli.errors import GencliError
from gencli.metrics._torchvision import import_torchvision

SIDE, COLOURS = 4, 16


@pytest.fixture
def theirs():
    """A small model of the library, random everywhere but where the released ones are 0."""
    pytest.importorskip("transformers")
    import_torchvision()  # which transformers imports too
    import transformers

    sizes = {"n_embd": 128, "n_layer": 2, "n_head": 2, "n_positions": SIDE**2, "vocab_size": COLOURS + 1}
    config = transformers.ImageGPTConfig(**sizes, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    model = transformers.ImageGPTForCausalImageModeling(config).eval()
    filled(model, std=0.05)
    for name, value in model.named_parameters():
        if name.endswith("bias"):
            value.data.zero_()
        elif ".ln_" in name:
            value.data += 1
    return model


def palette():
    return np.linspace(-1, 1, COLOURS * 3).reshape(COLOURS, 3).astype(np.float32)


def test_image_gpt_is_that_of_transformers_and_draws_its_colours(theirs, tmp_path):
    one, state = converter("image-gpt"), {key: value.clone() for key, value in theirs.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(GencliError, match="is no preprocessor_config"):
        one.bring(tmp_path / "pytorch_model.bin", None, tmp_path / "none", "ours", "typed", verify=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"clusters": palette().tolist()}))
    done = one.bring(tmp_path / "pytorch_model.bin", None, tmp_path, "ours", "typed", verify=True)
    assert [check.error for check in done.checks] == [0.0]
    run = Run.load(done.path)
    back = one.sent(run.model)
    assert back.keys() == state.keys() and all(torch.equal(back[key], value) for key, value in state.items())
    codes = torch.randint(COLOURS, (3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    told = torch.cat([torch.full((3, 1), COLOURS), codes.flatten(1)[:, :-1]], 1)
    with torch.no_grad():
        ours, other = run.model.net(codes).flatten(1, 2), theirs(input_ids=told).logits
        assert other.std() > 0.1 and (ours - other).abs().max() < 1e-4 * other.abs().max()
        for i in torch.randperm(len(state), generator=torch.Generator().manual_seed(1))[:20].tolist():
            name = list(state)[i]
            if name.endswith("bias"):
                continue  # must be 0
            changed = {**state, name: state[name] + torch.randn(state[name].shape)}
            run.model.load_state_dict(one.brought(run.model, changed, tmp_path), strict=False)
            assert not torch.equal(run.model.net(codes).flatten(1, 2), ours), name
    drawn = Run.load(done.path).sample(Rng.rows(range(2)))["x"]
    shown = {tuple(c) for c in drawn.movedim(1, -1).flatten(0, 2).tolist()}
    assert shown <= {tuple(c) for c in ((palette() + 1) * 127.5).round().astype(int).tolist()} and len(shown) > 1


def test_a_bias_that_ours_has_not_is_refused(theirs, tmp_path):
    state = theirs.state_dict()
    state["transformer.h.1.mlp.c_fc.bias"] += 0.1
    torch.save(state, tmp_path / "x.bin")
    np.save(tmp_path / "kmeans_centers.npy", palette())
    with pytest.raises(GencliError, match=r"of other values than ours transformer.h.1.mlp.c_fc.bias"):
        converter("image-gpt").bring(tmp_path / "x.bin", None, tmp_path, "ours", "typed", verify=True)


def test_latents_are_freed_of_each_channel_s_mean_and_deviation(tmp_path, monkeypatch):
    net = {"width": 16, "mults": [1, 1], "blocks": 1, "attention": []}
    critic = {"name": "patch-discriminator", "width": 8, "layers": 1}
    parts = {
        part: {"name": f"vqgan-{part}", **net, "z": 8 if part == "encoder" else 4} for part in ("encoder", "decoder")
    }
    model = {"name": "kl-autoencoder", "perceptual": "gencli", "dim": 4, "discriminator": critic, **parts}
    stage = converter("ldm", image_size=32)
    file_of(stage, built(model, images(32)), tmp_path / "vae.ckpt")
    plain = Run.load(stage.bring(tmp_path / "vae.ckpt", None, tmp_path / "checkpoints", "vae", "", True).path).model
    monkeypatch.chdir(tmp_path)
    scaling = Scaling((5.0, 3.0, 0.5, -2.0), (2.0, 4.0, 0.5, 1.0))
    run, inner, _ = latents_of("vae", (4, 16, 16), 0, scaling, tmp_path)
    x, column = torch.rand(2, 3, 32, 32) * 2 - 1, lambda values: torch.tensor(values)[:, None, None]
    with torch.no_grad():
        expected = (plain.encode(x) - column(scaling.mean)) / column(scaling.deviation)
        torch.testing.assert_close(run.model.encode(x), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(run.model.decode(expected), plain.reconstruct(x), rtol=1e-4, atol=1e-5)
        spread = plain.moments(x)[1] - 2 * column(scaling.deviation).log()
        torch.testing.assert_close(run.model.moments(x)[1], spread, rtol=1e-4, atol=1e-5)
    assert inner.keys() <= run.model.state_dict().keys()
    with pytest.raises(GencliError, match=r"is of 4×8×8 latents, run vae has latents of 4×16×16"):
        latents_of("vae", (4, 8, 8), 0, scaling, tmp_path)
    with pytest.raises(GencliError, match="not the autoencoder that they are of"):
        latents_of("", (4, 8, 8), 0, scaling, tmp_path)
