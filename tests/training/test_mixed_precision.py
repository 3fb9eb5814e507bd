"""Mixed precision: a scaled loss gives the same gradients, an overflow skips the step and halves the scale, bf16 learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from tiny import UNET, opened, shaken, table
from torch import Tensor

from gencli.bundle import Run
from gencli.config import parse
from gencli.training.session import resolve
from gencli.training.settings import TrainConfig
from gencli.training.trainer import Trainer


def trainer(net: dict[str, Any] = UNET, scale: float | None = None, precision: str = "no", **train: Any) -> Trainer:
    """A small U-Net's trainer, with a loss scaler if a scale is given."""
    made = resolve(table("ddpm", {"model": {"timesteps": 100, "net": net}}, ema=0.0, **train))
    data = opened(made["data"])
    torch.manual_seed(0)
    run = Run.build(made, data.spec)
    AcceleratorState._reset_state(reset_partial_state=False)
    accelerator = Accelerator(mixed_precision=precision, cpu=True)
    if scale is not None:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10_000)
    one = Trainer(run, parse(TrainConfig, made["train"], "train"), data.split("train"), accelerator)
    one.initialise()
    one.prepare()
    shaken(run.model)
    if scale is not None:  # what accelerate takes for fp16, which it refuses on a CPU
        accelerator.native_amp, accelerator.state._mixed_precision = True, "fp16"
    return one


def gradients(one: Trainer) -> dict[str, Tensor]:
    one.take_step()
    return {name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_gradients_of_a_scaled_loss_equal_those_of_the_plain_one(clip: float) -> None:
    plain, scaled = gradients(trainer(clip=clip)), gradients(trainer(scale=2.0**12, clip=clip))
    assert plain.keys() == scaled.keys() and len(plain) > 20
    for name, value in plain.items():
        torch.testing.assert_close(scaled[name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


def test_a_step_whose_gradient_overflows_is_skipped_counted_and_halves_the_scale() -> None:
    one = trainer(scale=1024.0)
    before = {name: p.detach().clone() for name, p in one.model.named_parameters()}
    handle = next(one.model.parameters()).register_hook(lambda grad: grad * torch.inf)
    shown = one.take_step().losses
    handle.remove()
    assert float(shown["skipped"]) == 1.0
    assert all(torch.equal(p, before[name]) for name, p in one.model.named_parameters())
    assert one.accelerator.scaler.get_scale() == 512.0
    shown = one.take_step().losses
    assert float(shown["skipped"]) == 0.0 and one.accelerator.scaler.get_scale() == 512.0
    assert any(not torch.equal(p, before[name]) for name, p in one.model.named_parameters())


def test_without_a_scaler_nothing_is_skipped() -> None:
    assert "skipped" not in trainer().take_step().losses


@pytest.mark.slow
def test_bf16_learns_as_fp32_does_over_two_hundred_steps() -> None:
    curves = {}
    net = {"name": "unet", "width": 8, "mults": [1], "blocks": 1, "attention": [8]}
    for precision in ("no", "bf16"):
        one = trainer(net, precision=precision, steps=200, batch_size=16, lr=1e-3, save_every=1000)
        curves[precision] = torch.stack([step.losses["loss"] for step in one])
    early, late = (slice(0, 50), slice(150, 200))
    exact, half = curves["no"], curves["bf16"]
    assert float(exact[late].mean()) < 0.6 * float(exact[:10].mean()), "it learns at all"
    assert not torch.equal(exact, half), "bf16 is used"
    for part in (early, late):
        assert abs(float(half[part].mean() / exact[part].mean()) - 1) < 0.02
