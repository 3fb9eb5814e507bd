"""Pickles as NVIDIA's programs write them, made without those programs."""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

MODULES = ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")


class Persistent:
    """An object as NVIDIA's `torch_utils.persistence` pickles it: with the source of its class, which their reader runs."""

    def __init__(self, name: str, state: Mapping[str, Any], source: str = "") -> None:
        self.name, self.state, self.source = name, dict(state), source

    def __reduce__(self) -> tuple[Any, ...]:
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": self.name, "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


@contextmanager
def faked() -> Iterator[type[dict[str, Any]]]:
    """The modules whose names stand in such files, while one is written; their reader runs what is in a file."""

    def _reconstruct_persistent_obj(meta: Any) -> None:
        exec(meta["module_src"])
        raise AssertionError("the file's code was run")

    easy: type[dict[str, Any]] = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    made = {name: types.ModuleType(name) for name in MODULES}
    vars(made["torch_utils.persistence"])["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
    vars(made["dnnlib.util"])["EasyDict"] = easy
    before = {name: sys.modules.get(name) for name in MODULES}
    sys.modules.update(made)
    try:
        yield easy
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def tree(state: Mapping[str, torch.Tensor], kind: str, source: str = "") -> Persistent:
    """A nested module whose `state_dict` is `state`."""
    own: OrderedDict[str, Any] = OrderedDict()
    inner: dict[str, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        head, _, rest = name.partition(".")
        if rest:
            inner.setdefault(head, {})[rest] = value
        else:
            own[name] = torch.nn.Parameter(value)
    buffers = OrderedDict((name, own.pop(name).data) for name in list(own) if name in ("freqs", "resample_filter"))
    modules = OrderedDict((name, tree(part, "Layer", source)) for name, part in inner.items())
    return Persistent(
        kind,
        {"training": False, "_parameters": own, "_buffers": buffers, "_modules": modules, "sizes": np.ones(3)},
        source,
    )


def nvidia_file(path: Path, parts: Mapping[str, tuple[str, Mapping[str, torch.Tensor]]], source: str = "") -> Path:
    """A file with modules under names, each of a class and with a state."""
    with faked() as easy:
        held: dict[str, Any] = {key: tree(state, kind, source) for key, (kind, state) in parts.items()}
        held |= {
            "loss_fn": Persistent("EDMLoss", {"P_mean": -1.2}),
            "act": torch.nn.SiLU(),
            "data": easy(path="cifar10.zip"),
        }
        path.write_bytes(pickle.dumps(held))
    return path
