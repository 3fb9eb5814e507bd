"""Released generators and discriminators: the same pictures and scores as the authors' networks make of the same files."""

from __future__ import annotations

import originals
import pytest
import torch
from nvidia import nvidia_file
from released import built, converter, file_of, manifest, numbers, skeleton
from torch import nn

from gencli.bundle import Run
from gencli.converters._official import images

TINY_ADA = {
    "name": "stylegan2-ada",
    "latent": 24,
    "generator": {"name": "stylegan2-generator", "base": 256, "most": 32, "style": 16, "mapping": 2},
    "critic": {"name": "stylegan2-critic", "base": 256, "most": 32, "group": 4, "mapping": 3},
}


def released(kind, parts):
    """A released pair of files as one, by value."""
    return numbers(
        {f"{part}{key}": shape for part, name in parts.items() for key, shape in manifest(name).items()}, True
    )


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("dcgan", {"G.": "dcgan_pytorch_examples_Generator", "D.": "dcgan_pytorch_examples_Discriminator"}),
        ("stylegan2-ada", {"G_ema.": "stylegan2ada_cifar_cond_G", "D.": "stylegan2ada_cifar_cond_D"}),
        ("stylegan2-ada", {"G_ema.": "stylegan2ada_paper256_uncond_G", "D.": "stylegan2ada_paper256_uncond_D"}),
    ],
    ids=["dcgan", "cifar10", "paper256"],
)
def test_every_tensor_of_a_released_file_is_used_and_goes_back_to_its_place(kind, parts, tmp_path):
    one, given = converter(kind), released(kind, parts)
    run = skeleton(one, given)
    given |= one.fixed(run.model)
    run.model.load_state_dict(one.brought(run.model, given, tmp_path), strict=False, assign=True)
    back, dropped = one.sent(run.model), {key for key in given if one.drops(key)}
    assert back.keys() == given.keys() - dropped
    assert all(key.endswith(("w_avg", "noise_const")) for key in dropped)
    assert all(torch.equal(value.to(given[key].dtype), given[key]) for key, value in back.items())


def dcgan_parts():
    """The networks of pytorch/examples, for 16 pixels."""
    up = lambda i, o, s, p: nn.ConvTranspose2d(i, o, 4, s, p, bias=False)  # noqa: E731
    down = lambda i, o, s, p: nn.Conv2d(i, o, 4, s, p, bias=False)  # noqa: E731
    relu, leak = (lambda: nn.ReLU(True)), (lambda: nn.LeakyReLU(0.2, inplace=True))
    maker = nn.Sequential(
        *(up(10, 16, 1, 0), nn.BatchNorm2d(16), relu(), up(16, 8, 2, 1), nn.BatchNorm2d(8), relu()),
        up(8, 3, 2, 1),
        nn.Tanh(),
    )
    critic = nn.Sequential(down(3, 8, 2, 1), leak(), down(8, 16, 2, 1), nn.BatchNorm2d(16), leak(), down(16, 1, 1, 0))
    generator = torch.Generator().manual_seed(0)
    for part in (maker, critic):
        for value in part.state_dict().values():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape, generator=generator) - (0.5 if value.ndim > 1 else 0.0))
    return maker.eval(), critic.eval()


def test_dcgan_makes_the_pictures_of_the_original(tmp_path):
    maker, critic = dcgan_parts()
    for name, part in (("netG_epoch_24.pth", maker), ("netD_epoch_24.pth", critic)):
        torch.save({f"main.{key}": value for key, value in part.state_dict().items()}, tmp_path / name)
    one = converter("dcgan")
    done = one.bring(tmp_path / "netG_epoch_24.pth", None, tmp_path, "ours", "typed", verify=True)
    run = Run.load(done.path)
    z, x = torch.randn(4, 10), torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        ours, theirs = run.model.decode(z), maker(z[:, :, None, None])
        scores = run.model.critic(x).flatten(), critic(x).flatten()
    assert theirs.std() > 0.05 and (ours - theirs).abs().max() < 1e-5
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)
    (tmp_path / "netD_epoch_24.pth").unlink()
    alone = one.bring(tmp_path / "netG_epoch_24.pth", None, tmp_path, "alone", "typed", verify=True)
    with torch.no_grad():
        assert torch.equal(Run.load(alone.path).model.decode(z), ours)


def equalised(model):
    """Weights of the size that equalised layers start with."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            generator = torch.Generator().manual_seed(len(name))
            value.copy_(torch.randn(value.shape, generator=generator) * (100 if "mapping.layers" in name else 1))


@pytest.mark.parametrize("classes", [0, 5])
def test_stylegan2_makes_the_pictures_and_scores_of_the_original(classes, tmp_path):
    model = {**TINY_ADA, "classes": bool(classes)}
    one, run = converter("stylegan2-ada"), built(model, images(16, classes=classes))
    equalised(run.model)
    state = file_of(one, run, tmp_path / "x.pt")
    more = {"G_ema.mapping.w_avg": torch.zeros(16), "G_ema.synthesis.b8.conv1.noise_const": torch.zeros(8, 8)}
    held = {**state, **more}
    maker, critic = ({k.removeprefix(p): v for k, v in held.items() if k.startswith(p)} for p in ("G_ema.", "D."))
    kinds = {"G_ema": ("Generator", maker), "D": ("Discriminator", critic), "G": ("Generator", maker)}
    done = one.bring(nvidia_file(tmp_path / "net.pkl", kinds), None, tmp_path, "ours", "typed", verify=True)
    assert [check.error for check in done.checks] == [0.0]
    ours = Run.load(done.path).model
    y = torch.tensor([1, 4, 0, 2]) if classes else None
    cond = {} if y is None else {"label": y}
    z, x = torch.randn(4, 24), torch.rand(4, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        made, theirs = one.output(ours, {"x": z, **cond}), originals.stylegan2(state, z, y)
        score, wanted = ours.critic(x, **cond), originals.stylegan2_score(state, x, y, 4)
        assert theirs.std(0).mean() > 0.1 * theirs.std() and (made - theirs).abs().max() < 1e-4 * theirs.abs().max()
        assert wanted.std() > 0.01 and (score - wanted).abs().max() < 1e-3 * wanted.std()
        silent = ("resample_filter", "noise_strength")  # computed, and noise is left out here
        names = sorted(key for key in state if not key.endswith(silent))
        for i in torch.randperm(len(names), generator=torch.Generator().manual_seed(0))[:20].tolist():
            changed = {**state, names[i]: state[names[i]] + torch.randn(state[names[i]].shape)}
            ours.load_state_dict(one.brought(ours, changed, tmp_path), strict=False)
            same = torch.equal(one.output(ours, {"x": z, **cond}), made), torch.equal(ours.critic(x, **cond), score)
            assert same == (not names[i].startswith("G_ema."), not names[i].startswith("D.")), names[i]
