"""What is not finite stops a run before it is saved, and `gencli replay` finds the same layer in the bundle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from shell import empty
from tiny import hashes, resumed, table, trained
from torch import nn

from gencli.training import replay
from gencli.training.faults import NotFinite

MODELS = ["ddpm", "vqvae", "wgan-gp", "gated-pixelcnn"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of three steps."""
    root = tmp_path_factory.mktemp("runs")
    return {name: trained(root, table(name, steps=3)) for name in MODELS}


def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "checkpoints" / folder.name))


def fails(folder: Path, **train: Any) -> NotFinite:
    before = hashes(folder)
    with pytest.raises(NotFinite) as caught:
        resumed(folder, steps=9, **train)
    assert hashes(folder) == before, "the last saved state is untouched"
    return caught.value


class Poison:
    """A layer whose output, or whose gradient, is not finite from the `at`-th call in training on."""

    def __init__(self, patch: pytest.MonkeyPatch, kind: type, at: int, forward: bool = True) -> None:
        real, self.calls = kind.forward, 0

        def poisoned(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            made = real(module, *args, **kwargs)
            self.calls += module.training
            if self.calls <= at or not module.training:
                return made
            return made * torch.tensor(float("inf")) if forward else made + (made * 0).sum().sqrt()

        patch.setattr(kind, "forward", poisoned)


@pytest.mark.parametrize("name", MODELS)
def test_a_replayed_step_names_the_layer_that_training_named(
    name: str, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(finished[name], tmp_path)
    kind = nn.Linear if name == "wgan-gp" else nn.Conv2d
    with monkeypatch.context() as patch:
        Poison(patch, kind, 0)
        error = fails(folder)
        assert error.bundle["layer"].endswith(f"({kind.__name__})") or name == "gated-pixelcnn", error.bundle
        path = replay.find(str(folder))
        assert f"gencli replay {path}" in error.hint
        made = replay.replay(path)
    assert made.layer == error.bundle["layer"] and made.bundle["step"] == error.bundle["step"] == 4
    assert replay.replay(path).layer == "", "without the fault the same step is finite"


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_gradient_that_is_not_finite_never_reaches_the_weights(
    clip: float, finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy(trained(tmp_path / "made", table("ddpm", steps=3, clip=clip)), tmp_path)
    with monkeypatch.context() as patch:
        Poison(patch, nn.Conv2d, 0, forward=False)
        error = fails(folder, save_every=1)
        assert error.message.startswith("the gradient is not finite at step 4")
        assert error.bundle["layer"].endswith("(gradient)")
        assert replay.replay(replay.find(str(folder))).layer == error.bundle["layer"]


def test_data_and_weights_that_are_not_finite_are_told_apart(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gencli.bundle import Run
    from gencli.training.trainer import Trainer

    real = Run.encode

    def nan(self: Run, batch: Any, rng: Any) -> Any:
        made = real(self, batch, rng)
        return {**made, "x": torch.where(torch.arange(len(made["x"]))[:, None, None, None] == 2, torch.nan, made["x"])}

    folder = copy(finished["ddpm"], tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "encode", nan)
        assert fails(folder).bundle["layer"] == "the data (x)"
    assert replay.replay(replay.find(str(folder))).layer == "the data (x)"

    step = Trainer._step

    def broken(self: Trainer, optimiser: Any) -> Any:
        made = step(self, optimiser)
        with torch.no_grad():
            next(iter(self.params["main"].values())).view(-1)[0] = torch.inf
        return made

    monkeypatch.setattr(Trainer, "_step", broken)
    error = fails(folder, save_every=1)
    assert error.bundle["layer"].endswith("(weights)") and error.message.startswith(
        "the weights are not finite at step 4"
    )
    assert replay.replay(replay.find(str(folder))).layer == error.bundle["layer"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_before_the_first_save_is_replayed_in_its_own_precision(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: set[torch.dtype] = set()
    Poison(monkeypatch, nn.Conv2d, 0)
    with pytest.raises(NotFinite) as caught:
        trained(tmp_path, table("ddpm", precision=precision))
    real = nn.Conv2d.forward

    def watched(self: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        made = real(self, x)
        seen.add(made.dtype)
        return made

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    (folder,) = tmp_path.iterdir()
    assert replay.replay(replay.find(str(folder))).layer == caught.value.bundle["layer"]
    assert seen & {torch.bfloat16} == ({torch.bfloat16} if precision == "bf16" else set())


def test_dropout_is_the_same_in_the_step_that_is_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    real = nn.Dropout.forward

    def watched(self: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        made = real(self, x)
        if self.training:
            seen.append((made == 0).flatten()[:200].clone())
        return made

    over = {"model": {"net": {"dropout": 0.5}}}
    folder = copy(trained(tmp_path / "made", table("ddpm", over, steps=3)), tmp_path)
    monkeypatch.setattr(nn.Dropout, "forward", watched)
    Poison(monkeypatch, nn.Conv2d, 0)
    fails(folder)
    trained_with = len(seen) // 2
    there = seen[-trained_with:]
    seen.clear()
    replay.replay(replay.find(str(folder)))
    assert there and len(seen) == len(there) and all(torch.equal(a, b) for a, b in zip(seen, there, strict=True))


# ---------------------------------------------------------------------------------------------------------- the command line


def test_the_command_says_it_in_one_line(
    finished: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy(finished["ddpm"], tmp_path)
    with empty(tmp_path, capsys) as shell:
        shell("replay", folder.name).fails(folder.name, "no bundle")
        with monkeypatch.context() as patch:
            Poison(patch, nn.Conv2d, 0)
            error = fails(folder)
            done = shell.fine("replay", folder.name)
            line = f"step 4, phase main: the loss is not finite; first in {error.bundle['layer']}\n"
            assert done.out == line and "next: gencli train ddpm --clip 1" in done.err
            path = f"checkpoints/{folder.name}/train/not-finite-4.json"
            assert shell.fine("replay", path).out == line
            found = shell.fine("replay", path, "--json").document
            assert found["layer"] == found["recorded"] == error.bundle["layer"] and found["step"] == 4
        shell("replay", path).fails("is finite here", error.bundle["layer"], code=1)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"what": "x"}', '{"what": "loss", "step": 1}', "\x00"])
def test_what_is_no_bundle_is_named(
    text: str, finished: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copy(finished["ddpm"], tmp_path) / "train" / "not-finite-4.json"
    with empty(tmp_path, capsys) as shell:
        shell("replay", str(path)).fails("not-finite-4.json")
        path.write_text(text)
        shell("replay", str(path)).fails("not-finite-4.json")
        facts = {
            "what": "loss",
            "step": 4,
            "layer": "x",
            "phase": "other",
            "rows": [0, 8],
            "process": [0, 1],
            "items": [],
        }
        path.write_text(json.dumps(facts))
        shell("replay", str(path)).fails("not-finite-4.safetensors is missing")
