"""What to keep when a loss is not finite: the step, its items, its seed, and the first layer to blame."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gencli.core import Batch, Model, Turn


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, (list, tuple)) else []


@torch.no_grad()
def first_bad_layer(model: Model, batch: Batch, turn: Turn) -> str:
    """The first module, in order of execution, whose output is not finite when the step is run again."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and any(not torch.isfinite(t).all() for t in _tensors(output) if t.is_floating_point()):
                found.append(f"{name} ({type(module).__name__})")

        return hook

    for name, value in model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            return f"{name} (weights)"
    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if not list(m.children())]
    try:
        model.loss(batch, turn)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return found[0]
    return (
        "the data" if any(not torch.isfinite(t).all() for t in batch.values() if t.is_floating_point()) else "the loss"
    )
