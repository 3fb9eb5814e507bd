"""An ONNX graph of the part of a model that is a function: a denoiser, or a decoder.

    denoiser   x0 = D(x, sigma, …)   x `(N, C, H, W)` with noise sigma `(N,)`, labels `(N,)` (the last number is "no class")
    decoder    x = decode(z, …)      z a latent, or whole numbers `(N, h, w)` for codes

The first dimension of every input is free. The header's property `gencli` has the run's config as JSON. Checked with
onnxruntime at batches of 1, 2 and 5; a denoiser's difference counts in units of noise, |ΔD| / max(1, σ).

Errors: a model that is neither, such as one that samples a token at a time; onnx not installed; weights over 2 GB.
"""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from gencli.bundle import Run
from gencli.converters._base import Check, Converter, installed
from gencli.converters._parts import BATCHES, Call, exportable, gap
from gencli.errors import GencliError

OPSET = 18
LARGEST = 2_000_000_000  # bytes; a protocol buffer holds no more
INSTALL = "pip install 'gencli[export]'"


class Onnx(Converter):
    """For runtimes without Python."""

    suffix = ".onnx"
    peer = ("onnxruntime", "export")

    def write(self, run: Run, path: Path) -> list[str]:
        if not installed("onnx"):
            raise GencliError("onnx is not installed, which writes this format", INSTALL)
        import onnx

        part = exportable(run)
        size = sum(value.nbytes for value in run.model.state_dict().values())
        if size > LARGEST:
            raise GencliError(
                f"run {run.name} has {size / 1e9:.1f} GB of weights, an ONNX file holds 2", "convert --to safetensors"
            )
        inputs = part.inputs(2)
        names = [*inputs, part.output]
        with _quiet(), torch.no_grad(), Portable():
            try:
                torch.onnx.export(
                    Call(run.model, part.function, list(inputs)).eval(),
                    tuple(inputs.values()),
                    str(path),
                    input_names=list(inputs),
                    output_names=[part.output],
                    dynamic_axes={name: {0: "batch"} for name in names},
                    opset_version=OPSET,
                    dynamo=False,
                )
            except torch.onnx.errors.OnnxExporterError as error:
                reason = " ".join(str(error).split("[Caused", 1)[0].split())[:200]
                raise GencliError(
                    f"{part.what} of run {run.name} cannot be exported: {reason}",
                    f"gencli convert {run.name} --to safetensors",
                ) from error
        made = onnx.load(str(path))
        made.metadata_props.add(key="gencli", value=json.dumps(run.config, ensure_ascii=False))
        onnx.checker.check_model(made)
        onnx.save(made, str(path))
        return [f"the graph is {part.what}: {', '.join(inputs)} to {part.output}"]

    def check(self, run: Run, path: Path) -> list[Check]:
        import onnxruntime

        part, worst = exportable(run), 0.0
        for n in BATCHES:
            inputs = part.inputs(n)
            with torch.no_grad():
                ours = part.function(**inputs)
            try:
                session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
                theirs = session.run(None, {key: value.numpy() for key, value in inputs.items()})[0]
            except Exception as error:  # onnxruntime's own have no common class
                raise GencliError(
                    f"the graph of {run.name} does not run at a batch of {n}: {' '.join(str(error).split())[:200]}",
                    "please report it",
                    code=1,
                ) from error
            worst = max(worst, gap(ours, torch.from_numpy(theirs), inputs))
        return [Check(f"{part.what} against onnxruntime at batches of {', '.join(map(str, BATCHES))}", worst, 1e-4)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's warnings of constants (other batches are checked afterwards) and its graph on stdout."""
    log = torch._C._jit_onnx_log
    torch._C._jit_onnx_log = lambda *_: None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_onnx_log = log


class Portable(TorchFunctionMode):
    """Operators that ONNX or its exporter lacks, made of those that it has."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return REPLACED.get(func, func)(*args, **(kwargs or {}))


def _searchsorted(edges: Tensor, values: Tensor) -> Tensor:
    return (edges < values[..., None]).sum(-1)


def _conv_transpose2d(x: Tensor, kernel: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A kernel that is computed from weights must be a constant: the exporter needs its shape."""
    constant = kernel if isinstance(kernel, nn.Parameter) else torch.from_numpy(kernel.numpy().copy())
    return torch.conv_transpose2d(x, constant, *args, **kwargs)


def _layer_norm(x: Tensor, shape: Sequence[Any], *args: Any, **kwargs: Any) -> Tensor:
    return F.layer_norm(x, [int(side) for side in shape], *args, **kwargs)


def _batch_norm(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Of a model that is not trained: an affine map, which needs no known number of channels."""
    assert not training, "a model is exported in evaluation mode"
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    sides = (1, -1, *[1] * (x.ndim - 2))
    return x * scale.reshape(sides) + shift.reshape(sides)


def _movedim(x: Tensor, source: int, target: int) -> Tensor:
    """The exporter takes a negative axis for a position."""
    return torch.movedim(x, source % x.ndim, target % x.ndim)


REPLACED: dict[Any, Callable[..., Tensor]] = {
    torch.searchsorted: _searchsorted,
    torch.conv_transpose2d: _conv_transpose2d,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    torch.movedim: _movedim,
    Tensor.movedim: _movedim,
}
