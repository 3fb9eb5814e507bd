"""A program of `torch.export`, for PyTorch without gencli: `torch.export.load(path).module()(x, sigma, …)`.

    denoiser   x0 = D(x, sigma, …)   x `(N, C, H, W)` with noise sigma `(N,)`, labels `(N,)` (the last number is "no class")
    decoder    x = decode(z, …)      z a latent, or whole numbers `(N, h, w)` for codes

Inputs are in this order, their first dimension free. The archive's extra file `gencli.json` has the run's config; read it with
`torch.export.load(path, extra_files=(found := {"gencli.json": ""}))`. Checked by reading the program again and running it at
batches of 1, 2 and 5; a denoiser's difference counts in units of noise, |ΔD| / max(1, σ).

Errors: a model that is neither, such as one that samples a token at a time; operations that the exporter cannot trace.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from gencli.bundle import Run
from gencli.converters._base import Check, Converter
from gencli.converters._parts import BATCHES, Call, exportable, gap
from gencli.errors import GencliError

CONFIG = "gencli.json"


class Pt2(Converter):
    """For PyTorch's own deployment: ahead-of-time compilers, other devices."""

    suffix = ".pt2"

    def write(self, run: Run, path: Path) -> list[str]:
        part = exportable(run)
        inputs = part.inputs(3)
        batch = torch.export.Dim("batch", min=1)
        with torch.no_grad():
            try:
                program = torch.export.export(
                    Call(run.model, part.function, list(inputs)).eval(),
                    tuple(inputs.values()),
                    dynamic_shapes=(tuple({0: batch} for _ in inputs),),
                )
            except Exception as error:  # the exporter's own have no common class
                raise GencliError(
                    f"{part.what} of run {run.name} cannot be exported: {' '.join(str(error).split())[:200]}",
                    f"gencli convert {run.name} --to safetensors",
                ) from error
        with path.open("wb") as file:  # a path would have to end in .pt2 already
            torch.export.save(program, file, extra_files={CONFIG: json.dumps(run.config, ensure_ascii=False)})
        return [f"the program is {part.what}: {', '.join(inputs)} to {part.output}"]

    def check(self, run: Run, path: Path) -> list[Check]:
        with path.open("rb") as file:
            part, program, worst = exportable(run), torch.export.load(file).module(), 0.0
        for n in BATCHES:
            inputs = part.inputs(n)
            with torch.no_grad():
                worst = max(worst, gap(part.function(**inputs), program(*inputs.values()), inputs))
        return [Check(f"{part.what} against the program at batches of {', '.join(map(str, BATCHES))}", worst, 1e-5)]
