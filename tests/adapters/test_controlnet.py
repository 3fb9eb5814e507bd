"""ControlNet: the same model at the start and at scale 0, the formula, official counts, what is trained, edges of any data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffused import randomised
from PIL import Image
from shell import Shell
from tiny import session, smoke, trained

from gencli.adapters._base import folded
from gencli.adapters.controlnet import Controlnet, hint_encoder
from gencli.bundle import Run
from gencli.config import merge
from gencli.core import Field, Rng, Spec, Turn
from gencli.errors import GencliError
from gencli.models.diffusion.ddpm import Ddpm
from gencli.networks.adm import Adm
from gencli.training.session import resolve

UNET = {"name": "unet", "width": 8, "mults": (1, 2), "blocks": 1, "attention": (4,)}
ADM = {"name": "adm", "width": 8, "mults": (1, 2), "blocks": 1, "attention": (4,), "head_width": 0, "heads": 1}
SPEC = Spec(
    Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)),
    {
        "image": Field("image", (1, 8, 8), vocab=256, range=(-1.0, 1.0)),
        "label": Field("label", (), vocab=3),
    },
)


def pair(net: dict[str, Any], prediction: str = "eps", **settings: Any) -> tuple[Any, Any]:
    """A model with random weights everywhere, and the same with a control beside it."""
    torch.manual_seed(0)
    adapter = Controlnet.make(settings)
    tables = {"timesteps": 20, "prediction": prediction, "net": net}
    plain, steered = (Ddpm.make(tables, adapter.narrowed(SPEC)).eval() for _ in range(2))
    randomised(plain.net)
    adapter.apply(steered, SPEC)
    taken = plain.state_dict()
    own = steered.state_dict()
    steered.load_state_dict({**own, **taken})
    adapter.begin(steered, [key for key in own if key not in taken])
    return plain, steered.eval()


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def shaken(control: Any) -> Any:
    with torch.no_grad():
        for i, p in enumerate(control.parameters()):
            p.add_(0.1 * drawn(*p.shape, seed=100 + i))
    return control


@pytest.mark.parametrize("net", [UNET, ADM], ids=["unet", "adm"])
def test_at_the_start_at_scale_0_and_without_an_image_it_is_the_model_that_it_was(net: dict[str, Any]) -> None:
    x, sigma, label = drawn(3, 1, 8, 8), torch.tensor([0.1, 1.0, 9.0]), torch.arange(3)
    given = {"label": label, "image": drawn(3, 1, 8, 8, seed=1).sign()}
    plain, steered = pair(net)
    before = plain.denoise(x, sigma, label=label)
    assert torch.equal(steered.denoise(x, sigma, **given), before)
    shaken(steered.net.control)
    assert not torch.allclose(steered.denoise(x, sigma, **given), before, atol=0.01), "a control that learned is heard"
    assert torch.equal(steered.denoise(x, sigma, label=label), before)
    steered.net.control.scale = 0.0
    assert torch.equal(steered.denoise(x, sigma, **given), before)


@pytest.mark.parametrize("net", [UNET, ADM], ids=["unet", "adm"])
def test_the_formula_by_hand(net: dict[str, Any]) -> None:
    plain, steered = pair(net, scale=0.7)
    control = shaken(steered.net.control)
    x, level, image = drawn(2, 1, 8, 8), torch.tensor([3.0, 11.0]), drawn(2, 1, 8, 8, seed=2).sign()
    label = torch.tensor([0, 2])
    kept: list[torch.Tensor] = []
    hint = (image + 1) / 2
    for layer in control.hint:
        hint = layer(hint)
    first = control.encoder.conv_in if hasattr(control.encoder, "conv_in") else control.encoder.path.conv_in
    with first.register_forward_hook(lambda module, inputs, output: output + hint):
        features, bottom, _ = control.encoder.contract(x, level, {"label": label})
    for layer, feature in zip(control.outputs, [*features, bottom], strict=True):
        kept.append(
            0.7 * torch.einsum("oi,nihw->nohw", layer.weight[..., 0, 0], feature) + 0.7 * layer.bias[:, None, None]
        )
    by_hand = plain.net(x, level, residuals=kept, label=label)
    torch.testing.assert_close(steered.net(x, level, label=label, image=image), by_hand, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hint.shape, control.encoder.contract(x, level, {"label": label})[0][0].shape)


def test_hint_and_zero_convolutions_of_320_channels_have_the_official_counts() -> None:
    """Of the 361,279,120 numbers of SD-1.x's all but its contracting path, whose attention to text no network here has."""
    latents = Spec(Field("latent", (4, 64, 64)), {"image": Field("image", (3, 512, 512), vocab=256)})
    settings = {
        "width": 320,
        "mults": (1, 2, 4, 4),
        "blocks": 2,
        "attention": (64, 32, 16),
        "head_width": 0,
        "heads": 8,
    }
    with torch.device("meta"):
        net = Adm.make({**settings, "resample": "conv", "scale_shift": False}, latents.x, 4, {})
        model = torch.nn.Module()
        model.net, model.spec = net, Spec(latents.x)  # type: ignore[assignment]
        Controlnet.make({}).apply(model, latents)
    control: Any = net.control  # type: ignore[attr-defined]
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in control.named_children()}
    assert (count["hint"], count["outputs"]) == (1_086_480, 11_479_680)
    assert list(net.features) == [320] * 4 + [640] * 3 + [1280] * 5
    path = sum(p.numel() for name, p in net.named_parameters() if name.startswith("path."))
    assert count["encoder"] == path and sum(p.numel() for p in control.parameters()) == sum(count.values())
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        f"net.control.{name}" for name, _ in control.named_parameters()
    }


def test_after_training_the_frozen_are_bit_for_bit_what_they_were_and_the_copy_began_as_theirs(tmp_path: Path) -> None:
    base = Run.load(trained(tmp_path, smoke("ddpm"), name="base"))
    theirs = base.model.state_dict()
    tables = merge(smoke("ddpm"), {"train": {"steps": 1, "lr": 0.01, "warmup": 0, "save_every": 1}})
    tables["adapters"] = [{"name": "controlnet"}]
    assert resolve(tables)["data"]["name"] == "edges" and resolve(tables)["data"]["of"] == "digits"
    made = session(tmp_path, tables, begun=base.path, name="steered")
    own = made.run.model.state_dict()
    copied = [key for key in theirs if f"net.control.encoder.{key.removeprefix('net.')}" in own]
    assert len(copied) > 20
    assert all(torch.equal(own[f"net.control.encoder.{key.removeprefix('net.')}"], theirs[key]) for key in copied)
    before = {key: value.clone() for key, value in own.items()}
    for _ in made.events():
        pass
    run = Run.load(made.folder)
    after = run.model.state_dict()
    assert all(torch.equal(after[key], theirs[key]) for key in theirs)
    moved = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert moved and all(key.startswith("net.control.outputs") for key in moved), "nothing else has a gradient yet"
    tables["train"] = {**tables["train"], "steps": 3}
    on = session(tmp_path, tables, begun=made.folder, name="on")
    assert all(torch.equal(value, after[key]) for key, value in on.run.model.state_dict().items()), "not copied again"
    for _ in on.events():
        pass
    done = Run.load(on.folder).model.state_dict()
    assert all(torch.equal(done[key], theirs[key]) for key in theirs)
    assert any(not torch.equal(done[key], after[key]) for key in done if "control.encoder" in key)
    with pytest.raises(GencliError, match="cannot be folded"):
        folded(run)


def test_a_frozen_network_learns_to_draw_what_the_image_says() -> None:
    """Halves of which one is bright, told by images: the frozen network, of random weights, knows neither."""
    _, model = pair(UNET, prediction="x0")
    sides = torch.tensor([1.0, -1.0]).repeat_interleave(4)
    image = torch.tensor([1.0, -1.0]).repeat(8)[:, None, None, None] * sides.expand(1, 1, 8, 8)
    optimiser = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 0.03)

    def loss(given: torch.Tensor | None, key: int) -> torch.Tensor:
        batch = {"x": 0.5 * image, "label": torch.zeros(16, dtype=torch.long)}
        batch |= {} if given is None else {"image": given}
        return model(batch, Turn("main", 0, 1, Rng.batch("t", key, total=16)))["loss"]

    for step in range(40):
        optimiser.zero_grad()
        loss(image, step).backward()
        optimiser.step()
    with torch.no_grad():
        right, wrong, base = (float(loss(given, 1000)) for given in (image, -image, None))
    assert right < 0.6 and min(wrong, base) > 0.9, (right, wrong, base)


def test_a_run_is_steered_by_files_by_held_out_edges_and_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from shell import empty

    with empty(tmp_path, capsys) as shell:
        _steered(shell)


def _steered(shell: Shell) -> None:
    shell.fine("train", "ddpm", "--smoke", "--name", "base", "-q")
    args = ["--from", "base", "--adapter", "controlnet", "--steps", "2", "--name", "steered", "-q"]
    shell.fine("train", "ddpm", *args)
    Image.fromarray(np.eye(8, dtype=np.uint8) * 255).save("edges.png")

    def made(*given: str) -> list[np.ndarray]:
        folder = Path(shell.fine("sample", "steered", *given, "-n", "2", "-q").out.strip())
        return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png")) if file.stem.isdigit()]

    assert len(made("--input", "edges.png")) == 2 and len(made()) == 2
    shell("convert", "steered", "--to", "diffusers").fails("cannot be folded")


@pytest.mark.parametrize(
    ("net", "spec", "words"),
    [
        ({"name": "dit", "width": 12, "depth": 1, "heads": 1}, SPEC, "network dit has no contracting path"),
        (UNET, Spec(SPEC.x), "the data have none beside x"),
        (UNET, Spec(SPEC.x, {"image": Field("image", (1, 12, 12), vocab=256)}), r"an image of \(1, 12, 12\) for x of"),
    ],
)
def test_what_it_cannot_do_is_one_line(net: dict[str, Any], spec: Spec, words: str) -> None:
    adapter = Controlnet.make({})
    model = Ddpm.make({"timesteps": 20, "net": net}, adapter.narrowed(spec))
    with pytest.raises(GencliError, match=words):
        adapter.apply(model, spec)


def test_an_image_of_twice_the_sides_is_halved_once() -> None:
    made = hint_encoder(Field("image", (3, 16, 16)), Field("latent", (4, 8, 8)), 24)
    assert made(torch.zeros(2, 3, 16, 16)).shape == (2, 24, 8, 8)
    widths = [layer.out_channels for layer in made if isinstance(layer, torch.nn.Conv2d)]
    assert widths == [16, 16, 32, 24] and not any(p.any() for p in made[-1].parameters())
