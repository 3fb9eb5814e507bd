"""What gencli says of the hardware."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gencli import device
from gencli.training import precision


def test_a_gpu_that_torch_cannot_use_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "version"
    monkeypatch.setattr(device, "DRIVER", driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.unused_gpu() == "", "no driver, nothing to say"
    driver.write_text("NVRM")
    assert "cannot use it" in device.unused_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.unused_gpu() == ""


def test_automatic_precision_is_the_table_and_an_explicit_one_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "kind", lambda where: "cpu-bf16")
    cpu = torch.device("cpu")
    assert precision.resolve("auto", cpu, "unet") == "bf16"
    assert precision.resolve("auto", cpu, "gated-pixelcnn") == "fp32", "not measured to gain"
    assert precision.resolve("fp32", cpu, "unet") == "fp32"
    monkeypatch.setattr(device, "kind", lambda where: "cpu")
    assert precision.resolve("auto", cpu, "unet") == "fp32"
    assert precision.resolve("bf16", cpu, "unet") == "bf16"
