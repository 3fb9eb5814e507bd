"""What to keep when numbers are not finite: the step, its items, its seed, the first layer to blame, and all to run it again.

train/not-finite-STEP.json         what is not finite (a loss, a gradient, or weights), where first, and which items
train/not-finite-STEP.safetensors  the weights as they were in that step, and the batch as the model was given it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor, nn

from gencli import files
from gencli.bundle import state_of
from gencli.core import Batch, Model, Turn
from gencli.errors import GencliError

What = Literal["loss", "gradient", "weights"]
MODEL, BATCH = "model/", "batch/"


class NotFinite(GencliError):
    """A loss, a gradient or the weights are not finite; `bundle` and `batch` are what is needed to run that step again."""

    def __init__(self, bundle: dict[str, Any], batch: Batch) -> None:
        verb = "are" if bundle["what"] == "weights" else "is"
        super().__init__(
            f"the {bundle['what']} {verb} not finite at step {bundle['step']} (phase {bundle['phase']}); "
            f"first in {bundle['layer']}",
            "lower --lr, set --clip 1, or use --precision fp32; the last saved state is untouched",
            code=1,
        )
        self.bundle, self.batch = bundle, batch


def write(error: NotFinite, model: Model, folder: Path) -> Path:
    """Write the bundle of a run in `folder`; the hint then says how to run the step again."""
    path = folder / "train" / f"not-finite-{error.bundle['step']}.json"
    tensors = {MODEL + key: value for key, value in state_of(model).items()}
    tensors |= {BATCH + key: value.detach().cpu().contiguous() for key, value in error.batch.items()}
    files.atomic_write(path.with_suffix(".safetensors"), save(tensors))
    files.atomic_json(path, error.bundle)
    error.hint = f"{error.hint}; run that step again: gencli replay {path}"
    return path


def bad_tensor(tensors: Mapping[str, Tensor]) -> str:
    """The first by name that is not finite throughout; nothing if all are."""
    real = ((name, value) for name, value in tensors.items() if value.is_floating_point())
    return next((name for name, value in real if not torch.isfinite(value).all()), "")


def bad_weights(model: Model) -> str:
    """The first parameter that is not finite, in words; nothing if all are."""
    name = bad_tensor(dict(model.named_parameters()))
    return f"{name} (weights)" if name else ""


def finite(params: list[nn.Parameter], norm: Tensor) -> bool:
    """Whether all gradients are finite; their norm may overflow although they are."""
    return math.isfinite(norm) or not bad_tensor({str(i): p.grad for i, p in enumerate(params) if p.grad is not None})


def first_bad(what: What, model: Model, batch: Batch, turn: Turn) -> str:
    """Where a loss or gradient first is not finite when the step is run again; nothing if it is finite."""
    if what == "weights":
        return bad_weights(model)
    return first_bad_layer(model, batch, turn) or (first_bad_gradient(model, batch, turn) if what == "gradient" else "")


def first_bad_layer(model: Model, batch: Batch, turn: Turn) -> str:
    """The data, the weights, or the first module, in order of execution, whose output is not finite; nothing if all are."""
    if name := bad_tensor(batch):
        return f"the data ({name})"
    if name := bad_weights(model):
        return name
    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and _bad(output):
                found.append(f"{'what is given to ' * _bad(inputs)}{name} ({type(module).__name__})")

        return hook

    handles = [m.register_forward_hook(watch(name)) for name, m in model.named_modules() if name]
    try:
        with torch.enable_grad():  # penalties differentiate
            losses = model.loss(batch, turn)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "" if torch.isfinite(losses["loss"]) else "the loss"


def first_bad_gradient(model: Model, batch: Batch, turn: Turn) -> str:
    """The first parameter, in order of the backward pass, whose gradient is not finite; nothing if all are."""
    found: list[str] = []

    def watch(name: str) -> Callable[[Tensor], None]:
        return lambda gradient: found.append(name) if _bad(gradient) else None

    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    handles = [parameter.register_hook(watch(name)) for name, parameter in trained]
    try:
        with torch.enable_grad():
            model.loss(batch, turn)["loss"].backward()
    finally:
        for handle in handles:
            handle.remove()
    model.zero_grad(set_to_none=True)
    return f"{found[0]} (gradient)" if found else ""


def _bad(value: Any) -> bool:
    return any(not torch.isfinite(t).all() for t in _tensors(value) if t.is_floating_point())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for item in value for t in _tensors(item)] if isinstance(value, (list, tuple)) else []
