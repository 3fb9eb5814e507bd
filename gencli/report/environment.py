"""What a bug report needs to say about a machine: versions, processor, memory, device, places and data; no secrets.

Of the environment only `OMP_NUM_THREADS` is told, and paths name the user's own folder `~`.
"""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gencli import __version__, device, files, home, registry
from gencli.errors import GencliError
from gencli.training import memory, precision

NEEDED = (
    *("torch", "accelerate", "numpy", "scipy", "scikit-learn", "safetensors"),
    *("pillow", "clean-fid", "matplotlib", "typer", "rich", "torchdiffeq"),
)
OPTIONAL = (
    *("diffusers", "scikit-image", "flow_matching", "torch-fidelity", "prdc", "pythae", "transformers"),
    *("vector-quantize-pytorch", "zuko", "lpips", "onnx", "onnxruntime", "pyarrow", "tensorboard", "wandb"),
)
CPUINFO = Path("/proc/cpuinfo")


def facts() -> dict[str, Any]:
    """Everything, as JSON."""
    chosen = device.default()
    return {
        "gencli": __version__,
        "installed": home.short(Path(__file__).parents[1]),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": _system(),
        "packages": {name: _version(name) for name in NEEDED},
        "optional": {name: _version(name) for name in OPTIONAL},
        "cpu": _cpu(),
        "memory": {"total": _memory(), "free": memory.available(torch.device("cpu"))},
        "device": _device(chosen),
        "precision": {name: precision.resolve("auto", chosen, name) for name in registry.entries("networks")},
        "caches": {cache.name: files.space(*cache.items).size for cache in home.CACHES},
        "home": home.short(home.home()),
        "runs": [_runs(folder) for folder in home.run_folders()],
        "data": {entry.name: entry.load().make().here() for entry in _published()},
        "plugins": _plugins(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    lines = CPUINFO.read_text(errors="replace").splitlines() if CPUINFO.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": named[0] if named else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "usable": usable,
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
        "fast_bf16": device.kind(torch.device("cpu")) == "cpu-bf16",
    }


def _system() -> str:
    """What `platform.platform` says, which starts a program to learn what this needs not."""
    if sys.platform != "linux":
        return platform.platform()
    parts = (platform.system(), platform.release(), platform.machine(), "with", "".join(platform.libc_ver()))
    return "-".join(part for part in parts if part)


def _memory() -> int | None:
    known = "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {})
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else None


def _device(chosen: torch.device) -> dict[str, str]:
    if chosen.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(), "why": ""}
    return {"type": chosen.type, "name": "", "why": device.unused_gpu() or "no GPU was found"}


def _runs(folder: Path) -> dict[str, Any]:
    count = sum(1 for path in folder.glob("*/config.json")) if folder.is_dir() else 0
    return {"folder": home.short(folder), "runs": count, "size": files.space(folder).size}


def _published() -> list[registry.Entry]:
    return [entry for name, entry in registry.entries("data").items() if name != "folder" and not entry.package]


def _plugins() -> list[dict[str, str]]:
    """Every component of other packages, each imported, with what is wrong with it."""
    rows = [{"kind": b.kind, "name": b.name, "package": b.package, "problem": str(b)} for b in registry.broken()]
    for kind in registry.KINDS:
        for entry in registry.entries(kind).values():
            if entry.package:
                rows.append({"kind": kind, "name": entry.name, "package": entry.package, "problem": _problem(entry)})
    return sorted(rows, key=lambda row: (row["package"], row["kind"], row["name"]))


def _problem(entry: registry.Entry) -> str:
    try:
        entry.load()
    except GencliError as error:
        return error.message
    return ""
