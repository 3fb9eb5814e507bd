"""torchvision, also where its compiled operators do not fit the installed torch.

clean-fid imports torchvision, of which it uses nothing compiled. Beside a CPU build of torch, the package index's
torchvision (built for CUDA) cannot load its library and then fails at import with "operator torchvision::nms does not
exist", next with `qnms`: the Python half describes operators that the missing library would have declared. Declaring
these two lets the import pass; calling them still fails, as it must. A torchvision that imports is left alone.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch

MISSING = ("nms", "qnms")
SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_held: list[torch.library.Library] = []  # a Library's declarations go when it does


def import_torchvision() -> ModuleType:
    """The module `torchvision`, with the two missing operators declared if, and only if, the plain import fails on them."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if not any(f"operator torchvision::{name} does not exist" in str(error) for name in MISSING):
            raise
    for name in [name for name in sys.modules if name == "torchvision" or name.startswith("torchvision.")]:
        del sys.modules[name]  # half imported
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in MISSING:
        if not hasattr(torch.ops.torchvision, name):
            library.define(name + SCHEMA)
    _held.append(library)
    return importlib.import_module("torchvision")
