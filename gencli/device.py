"""Where to compute, and what the hardware is fast at."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")
DRIVER = Path("/proc/driver/nvidia/version")


def default() -> torch.device:
    """A CUDA card if torch can use one, else the CPU; also the CPU under `accelerate launch --cpu`."""
    wanted = os.environ.get("ACCELERATE_USE_CPU", "").lower() not in ("true", "1", "yes")
    return torch.device("cuda" if wanted and torch.cuda.is_available() else "cpu")


def unused_gpu() -> str:
    """A line about a GPU that the driver sees and torch cannot use; empty if there is none."""
    if torch.cuda.is_available() or not DRIVER.exists():
        return ""
    why = "is a CPU build" if torch.version.cuda is None else f"was built for CUDA {torch.version.cuda}"
    return f"there is a GPU, but torch {torch.__version__} {why} and cannot use it: computing on the CPU"


def kind(device: torch.device) -> str:
    """`cuda-bf16`, `cuda`, `cpu-bf16` (multiplies bf16 faster than fp32), `cpu`, `mps`."""
    if device.type == "cuda":
        return "cuda-bf16" if torch.cuda.is_bf16_supported() else "cuda"
    if device.type == "cpu":
        fast = torch.cpu._is_amx_tile_supported() or (torch.cpu._is_avx512_bf16_supported() and not _by_intel())
        return "cpu-bf16" if fast else "cpu"
    return device.type


def _by_intel() -> bool:
    """Intel's AVX512-BF16 multiplies at 0.6 of the rate of fp32; it is AMX that is fast there."""
    return "GenuineIntel" in (CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else platform.processor())
